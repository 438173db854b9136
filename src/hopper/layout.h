// Owns where the elements of a fragment lie in its tile, reductions over a row, and P's way from accumulator to
// operand.
#pragma once

#include "hopper/fragment.h"
#include "hopper/math.h"
#include "hopper/warp.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// A thread holds two rows of its warpgroup's 64: half 0 and half 1, eight rows apart. Element i of an accumulator:
FLASH3_HOST_DEVICE constexpr int half_of(int i) { return (i >> 1) & 1; }
FLASH3_HOST_DEVICE constexpr int column_of(int i, int lane) { return (i >> 2) * 8 + (lane & 3) * 2 + (i & 1); }
// The row in 0 ... 63, for a thread's index in its warpgroup.
FLASH3_HOST_DEVICE constexpr int row_of(int half, int thread) {
  return (thread >> 5) * 16 + ((thread & 31) >> 2) + half * 8;
}

// Over the four lanes that share a row; every one of them gets the result, the same bits.
FLASH3_DEVICE float row_maximum(float x, Where where = Where::current()) {
  x = maximum(x, shuffle_xor(x, 1, where), where);
  return maximum(x, shuffle_xor(x, 2, where), where);
}

// Of both of a thread's rows at once: neither waits for the other's shuffles.
FLASH3_DEVICE void row_sums(float (&x)[2], Where where = Where::current()) {
  FLASH3_UNROLL
  for (int distance = 1; distance < 4; distance *= 2) {
    const float other[2] = {shuffle_xor(x[0], distance, where), shuffle_xor(x[1], distance, where)};
    x[0] += other[0];
    x[1] += other[1];
  }
}

// Rounds a 64 x N accumulator to T in the order in which wgmma wants its A operand: no data crosses lanes.
template <class T, int N>
FLASH3_DEVICE void repack(const Accumulator<N>& from, Operand<T, N>& to, Where where = Where::current()) {
  FLASH3_UNROLL
  for (int i = 0; i < Operand<T, N>::count; ++i) to[i] = pack<T>(from[2 * i], from[2 * i + 1], where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
