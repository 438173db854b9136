// Owns ordinary access to global memory on the emulator: checked against the tensors of the launch.
#pragma once

#include <cstring>

#include "hopper/shared.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

template <class T>
T load_global(const T* source, Where where = Where::current()) {
  emulator::check_global_access(source, sizeof(T), false, where);
  return *source;
}
template <class T>
T load_global_constant(const T* source, Where where = Where::current()) {
  return load_global(source, where);
}
template <class T>
void store_global(T* target, T value, Where where = Where::current()) {
  emulator::check_global_access(target, sizeof(T), true, where);
  *target = value;
  emulator::global_written();
}
inline Words4 load_global_16(const void* source, Where where = Where::current()) {
  emulator::check_global_access(source, 16, false, where);
  Words4 d;
  std::memcpy(&d, source, 16);
  return d;
}
inline void store_global_16(void* target, Words4 s, Where where = Where::current()) {
  emulator::check_global_access(target, 16, true, where);
  std::memcpy(target, &s, 16);
  emulator::global_written();
}
template <class T>
T atomic_add_global(T* target, T value, Where where = Where::current()) {
  emulator::maybe_yield();
  emulator::check_global_access(target, sizeof(T), true, where);
  const T old = *target;
  *target = old + value;
  emulator::global_written();
  return old;
}
inline int load_acquire_global(const int* source, Where where = Where::current()) {
  emulator::check_global_access(source, sizeof(int), false, where);
  emulator::global_poll(where);
  return *source;
}
inline void add_release_global(int* target, int value, Where where = Where::current()) {
  atomic_add_global(target, value, where);
}
inline void wait_global_equal(const int* source, int value, Where where = Where::current()) {
  while (load_acquire_global(source, where) != value) {
  }
}
inline void cp_async_16(SharedAddress target, const void* source, bool valid, Where where = Where::current()) {
  emulator::small_copy(target, source, valid, where);
}
inline void cp_async_commit_group(Where = Where::current()) { emulator::small_copy_commit(); }
template <int pending>
void cp_async_wait_group(Where where = Where::current()) {
  emulator::small_copy_wait(pending, where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
