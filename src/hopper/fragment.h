// Owns the register fragments of wgmma: the accumulator and the A operand, one thread's share of each.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// This thread's part of a warpgroup's 64 x N float32 accumulator. Between a wgmma and the wait that covers it nothing
// but further wgmma may touch it.
template <int N>
struct Accumulator {
  static constexpr int columns = N;
  static constexpr int count = N / 2;

  FLASH3_DEVICE float& operator[](int i) { return value[i]; }
  FLASH3_DEVICE float operator[](int i) const { return value[i]; }

  float value[count];  // for the room alone
};

// This thread's part of a warpgroup's 64 x K operand A: two elements of T a word.
template <class T, int K>
struct Operand {
  using Element = T;
  static constexpr int columns = K;
  static constexpr int count = K / 4;

  FLASH3_DEVICE unsigned& operator[](int i) { return word[i]; }
  FLASH3_DEVICE unsigned operator[](int i) const { return word[i]; }

  unsigned word[count];  // for the room alone
};

}  // namespace flash3::hopper::inline FLASH3_MACHINE
