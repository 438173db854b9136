// Owns shared memory on the emulator: every access goes through its shadow.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

using SharedAddress = unsigned int;

inline SharedAddress shared_address(const void* object) { return emulator::shared_address(object); }

template <class T>
T& shared_memory(Where where = Where::current()) {
  return *static_cast<T*>(emulator::shared_struct(sizeof(T), where));
}

template <class T, int N>
struct alignas(16) SharedArray {
  static constexpr int count = N;

  T load(int index, Where where = Where::current()) const {
    T value;
    emulator::read_shared(address(index, where), &value, sizeof(T), where);
    return value;
  }
  void store(int index, T value, Where where = Where::current()) {
    emulator::write_shared(address(index, where), &value, sizeof(T), where);
  }
  void atomic_add(int index, T value, Where where = Where::current()) {
    *static_cast<T*>(emulator::atomic_shared(address(index, where), sizeof(T), where)) += value;
  }

  T elements[N];

 private:
  SharedAddress address(int index, const Where& where) const {
    if (index < 0 || index >= N) emulator::index_out_of_range(index, N, where);
    return shared_address(elements + index);
  }
};

struct alignas(16) Words4 {
  unsigned int word[4];
};

inline Words4 load_shared_16(SharedAddress address, Where where = Where::current()) {
  Words4 d;
  emulator::read_shared(address, &d, 16, where);
  return d;
}
inline void store_shared_16(SharedAddress address, Words4 s, Where where = Where::current()) {
  emulator::write_shared(address, &s, 16, where);
}
inline unsigned int load_shared_4(SharedAddress address, Where where = Where::current()) {
  unsigned int d;
  emulator::read_shared(address, &d, 4, where);
  return d;
}
inline void store_shared_4(SharedAddress address, unsigned int s, Where where = Where::current()) {
  emulator::write_shared(address, &s, 4, where);
}
inline unsigned short load_shared_2(SharedAddress address, Where where = Where::current()) {
  unsigned short d;
  emulator::read_shared(address, &d, 2, where);
  return d;
}
inline void store_shared_2(SharedAddress address, unsigned short s, Where where = Where::current()) {
  emulator::write_shared(address, &s, 2, where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
