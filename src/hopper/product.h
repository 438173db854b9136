// Owns products of whole tiles: the loop of wgmma over K. Each is asynchronous: wgmma_fence before, commit and wait
// after.
#pragma once

#include "hopper/tile.h"
#include "hopper/wgmma.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// d (64 x N) = a[a_row ...][:] (b[b_row ...][:])^T, plus d if `accumulate`: scores = Q K^T. K is a's and b's columns.
template <int N, class T, int a_rows, int b_rows, int K, Swizzle a_swizzle, Swizzle b_swizzle>
FLASH3_DEVICE void multiply_abt(Accumulator<N>& d, const SharedTile<T, a_rows, K, a_swizzle>& a, int a_row,
                                const SharedTile<T, b_rows, K, b_swizzle>& b, int b_row, bool accumulate,
                                Where where = Where::current()) {
  using A = SharedTile<T, a_rows, K, a_swizzle>;
  using B = SharedTile<T, b_rows, K, b_swizzle>;
  const Descriptor a_start = a.k_major(a_row), b_start = b.k_major(b_row);
  FLASH3_UNROLL
  for (int k = 0; k < K; k += 16) {
    wgmma<T, Major::k, Major::k>(d, advance(a_start, A::k_major_offset(0, k)),
                                 advance(b_start, B::k_major_offset(0, k)), accumulate || k > 0, where);
  }
}

// d (64 x N) = p b[b_row ...][column ... column + N - 1], plus d if `accumulate`: output = P V. K is p's columns.
template <int N, class T, int K, int b_rows, int b_columns, Swizzle b_swizzle>
FLASH3_DEVICE void multiply_ab(Accumulator<N>& d, Operand<T, K>& p,
                               const SharedTile<T, b_rows, b_columns, b_swizzle>& b, int b_row, int column,
                               bool accumulate, Where where = Where::current()) {
  using B = SharedTile<T, b_rows, b_columns, b_swizzle>;
  const Descriptor b_start = b.mn_major(b_row, column);
  FLASH3_UNROLL
  for (int k = 0; k < K; k += 16) {
    wgmma<Major::mn>(d, p, k / 16, advance(b_start, B::mn_major_offset(k, 0)), accumulate || k > 0, where);
  }
}

// The same with P in shared memory, 64 rows from a_row on.
template <int N, class T, int a_rows, int K, int b_rows, int b_columns, Swizzle a_swizzle, Swizzle b_swizzle>
FLASH3_DEVICE void multiply_ab(Accumulator<N>& d, const SharedTile<T, a_rows, K, a_swizzle>& a, int a_row,
                               const SharedTile<T, b_rows, b_columns, b_swizzle>& b, int b_row, int column,
                               bool accumulate, Where where = Where::current()) {
  using A = SharedTile<T, a_rows, K, a_swizzle>;
  using B = SharedTile<T, b_rows, b_columns, b_swizzle>;
  const Descriptor a_start = a.k_major(a_row), b_start = b.mn_major(b_row, column);
  FLASH3_UNROLL
  for (int k = 0; k < K; k += 16) {
    wgmma<T, Major::k, Major::mn>(d, advance(a_start, A::k_major_offset(0, k)),
                                  advance(b_start, B::mn_major_offset(k, 0)), accumulate || k > 0, where);
  }
}

// d (64 x N) = (a[:][a_column ... + 63])^T b[:][b_column ... + N - 1]: dV = P^T dO. K is the rows of both.
template <int N, class T, int K, int a_columns, int b_columns, Swizzle a_swizzle, Swizzle b_swizzle>
FLASH3_DEVICE void multiply_atb(Accumulator<N>& d, const SharedTile<T, K, a_columns, a_swizzle>& a, int a_column,
                                const SharedTile<T, K, b_columns, b_swizzle>& b, int b_column, bool accumulate,
                                Where where = Where::current()) {
  using A = SharedTile<T, K, a_columns, a_swizzle>;
  using B = SharedTile<T, K, b_columns, b_swizzle>;
  const Descriptor a_start = a.mn_major(0, a_column), b_start = b.mn_major(0, b_column);
  FLASH3_UNROLL
  for (int k = 0; k < K; k += 16) {
    wgmma<T, Major::mn, Major::mn>(d, advance(a_start, A::mn_major_offset(k, 0)),
                                   advance(b_start, B::mn_major_offset(k, 0)), accumulate || k > 0, where);
  }
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
