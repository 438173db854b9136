// Owns shared memory: its one struct, addresses in it, and small arrays of values.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// An address in the shared window. In a cluster, bits 24 and up carry the block's rank.
using SharedAddress = unsigned int;

FLASH3_DEVICE SharedAddress shared_address(const void* object) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(object));
}

// The block's shared memory as the kernel's one struct. Its size is LaunchShape::shared_bytes.
template <class T>
FLASH3_DEVICE T& shared_memory(Where = Where::current()) {
  extern __shared__ __align__(1024) unsigned char flash3_shared_memory[];
  return *reinterpret_cast<T*>(flash3_shared_memory);
}

// N values that threads read and write one at a time. T has 1, 2, 4, 8 or 16 bytes.
template <class T, int N>
struct alignas(16) SharedArray {
  static constexpr int count = N;

  FLASH3_DEVICE T load(int index, Where = Where::current()) const { return elements[index]; }
  FLASH3_DEVICE void store(int index, T value, Where = Where::current()) { elements[index] = value; }
  FLASH3_DEVICE void atomic_add(int index, T value, Where = Where::current()) { atomicAdd(&elements[index], value); }

  T elements[N];  // for the room alone: kernels go through load and store
};

// Raw access at a shared address, 4 or 16 bytes wide: for tiles whose place a kernel computes itself.
struct alignas(16) Words4 {
  unsigned int word[4];
};

// ld.shared.v4.b32 {d0, d1, d2, d3}, [address];
FLASH3_DEVICE Words4 load_shared_16(SharedAddress address, Where = Where::current()) {
  Words4 d;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d.word[0]), "=r"(d.word[1]), "=r"(d.word[2]), "=r"(d.word[3])
               : "r"(address)
               : "memory");
  return d;
}

// st.shared.v4.b32 [address], {s0, s1, s2, s3};
FLASH3_DEVICE void store_shared_16(SharedAddress address, Words4 s, Where = Where::current()) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(address), "r"(s.word[0]), "r"(s.word[1]), "r"(s.word[2]), "r"(s.word[3])
               : "memory");
}

// ld.shared.b32 d, [address];
FLASH3_DEVICE unsigned int load_shared_4(SharedAddress address, Where = Where::current()) {
  unsigned int d;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(d) : "r"(address) : "memory");
  return d;
}

// st.shared.b32 [address], s;
FLASH3_DEVICE void store_shared_4(SharedAddress address, unsigned int s, Where = Where::current()) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(address), "r"(s) : "memory");
}

// ld.shared.u16 d, [address];
FLASH3_DEVICE unsigned short load_shared_2(SharedAddress address, Where = Where::current()) {
  unsigned short d;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(d) : "r"(address) : "memory");
  return d;
}

// st.shared.u16 [address], s;
FLASH3_DEVICE void store_shared_2(SharedAddress address, unsigned short s, Where = Where::current()) {
  asm volatile("st.shared.u16 [%0], %1;" : : "r"(address), "h"(s) : "memory");
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
