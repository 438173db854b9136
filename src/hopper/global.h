// Owns ordinary access to global memory: loads, stores, atomics. Kernels reach global memory here and in tma.h only.
#pragma once

#include "hopper/shared.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// ld.global d, [source];  T has 1, 2, 4, 8 or 16 bytes and is aligned to them.
template <class T>
FLASH3_DEVICE T load_global(const T* source, Where = Where::current()) {
  return *source;
}

// ld.global.nc d, [source];  For what no thread of the grid writes.
template <class T>
FLASH3_DEVICE T load_global_constant(const T* source, Where = Where::current()) {
  return __ldg(source);
}

// st.global [target], value;
template <class T>
FLASH3_DEVICE void store_global(T* target, T value, Where = Where::current()) {
  *target = value;
}

// ld.global.nc.v4.b32 {d0, d1, d2, d3}, [source];  16 bytes, aligned.
FLASH3_DEVICE Words4 load_global_16(const void* source, Where = Where::current()) {
  Words4 d;
  asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d.word[0]), "=r"(d.word[1]), "=r"(d.word[2]), "=r"(d.word[3])
               : "l"(source));
  return d;
}

// st.global.v4.b32 [target], {s0, s1, s2, s3};  16 bytes, aligned.
FLASH3_DEVICE void store_global_16(void* target, Words4 s, Where = Where::current()) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(target), "r"(s.word[0]), "r"(s.word[1]), "r"(s.word[2]), "r"(s.word[3])
               : "memory");
}

// atom.global.add d, [target], value;  Returns what was there. Relaxed: orders nothing else.
template <class T>
FLASH3_DEVICE T atomic_add_global(T* target, T value, Where = Where::current()) {
  return atomicAdd(target, value);
}

// ld.acquire.gpu.global.b32 d, [source];
FLASH3_DEVICE int load_acquire_global(const int* source, Where = Where::current()) {
  int d;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(d) : "l"(source) : "memory");
  return d;
}

// red.release.gpu.global.add.s32 [target], value;
FLASH3_DEVICE void add_release_global(int* target, int value, Where = Where::current()) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" : : "l"(target), "r"(value) : "memory");
}

// Waits until *source == value, acquiring what was released with it.
FLASH3_DEVICE void wait_global_equal(const int* source, int value, Where where = Where::current()) {
  while (load_acquire_global(source, where) != value) {
  }
}

// cp.async.cg.shared.global [target], [source], 16, valid ? 16 : 0;  Copies 16 bytes, or fills with zero and reads
// none.
FLASH3_DEVICE void cp_async_16(SharedAddress target, const void* source, bool valid, Where = Where::current()) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(target), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}

// cp.async.commit_group;
FLASH3_DEVICE void cp_async_commit_group(Where = Where::current()) {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group pending;  This thread's copies; others see them after a barrier.
template <int pending>
FLASH3_DEVICE void cp_async_wait_group(Where = Where::current()) {
  asm volatile("cp.async.wait_group %0;" : : "n"(pending) : "memory");
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
