// The online softmax of one warpgroup's 64 rows: a reference exponent and a sum a row, and when the reference moves.
#pragma once

#include "forward/params.h"
#include "hopper/hopper.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

inline constexpr float infinity = __builtin_huge_valf();
inline constexpr float log2_e = 1.4426950408889634f;
inline constexpr float ln_2 = 0.6931471805599453f;

// The two rows that a thread shares with the other three of its quad. probability = 2^(score x scale - reference).
//
// The reference need not be the row's maximum, only near it: float32 and bfloat16 keep their precision at any scale,
// and what is divided by in the end carries the same factor. It moves when a maximum exceeds it by more than `growth`
// (2^4 in the probabilities: more would cost accuracy where one key dominates, whose probability is then rounded
// instead of being 1), which after a row's first block is rare, and exact whenever it happens. Whether a row's
// reference moves depends on that row alone, so that its bits do not depend on its neighbours.
struct Rows {
  float reference[2] = {0, 0};              // in exponents; 0 while no key has been seen
  float limit[2] = {-infinity, -infinity};  // the score above which it moves
  float sum[2] = {0, 0};                    // of this thread's columns
};

// At the tile's end: probability = 2^(score x scale - reference) x factor, and O is multiplied by factor.
struct ClosedRows {
  float reference[2];
  float factor[2];
};

// What becomes of a raw score that is not simply multiplied by a positive scale (see Transform).
FLASH3_DEVICE float transform_score(const Params& params, float score) {
  if (params.transform == Transform::none) return score;
  if (params.transform == Transform::scale) return score * params.transform_factor;
  // tanh x = 1 - 2 / (1 + e^2x): its absolute error, which is what a score feels, is that of float32.
  const float e = exp2_approx(score * params.transform_factor);
  return params.softcap_factor - 2 * params.softcap_factor * rcp_approx(1 + e);
}

template <int N>
FLASH3_DEVICE void transform_scores(const Params& params, Accumulator<N>& scores) {
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) scores[i] = transform_score(params, scores[i]);
}

// Keys that a thread's rows see, as key_begin[half] <= key < key_end[half].
struct Visible {
  int key_begin[2], key_end[2];
};

template <int N>
FLASH3_DEVICE void mask_scores(Accumulator<N>& scores, const Visible& visible, int first_key) {
  const int shift = first_key + 2 * (opaque(lane_index()) & 3);
  const int begin[2] = {visible.key_begin[0] - shift, visible.key_begin[1] - shift};
  const int end[2] = {visible.key_end[0] - shift, visible.key_end[1] - shift};
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) {
    const int column = column_of(i, 0), half = half_of(i);
    if (column < begin[half] || column >= end[half]) scores[i] = -infinity;
  }
}

// Moves references where the block's maxima demand it. Returns whether one of the warp's rows moved; `factor` is then
// what that multiplies the row's output by (1 for rows that stayed).
template <int N>
FLASH3_DEVICE bool move_references(const Params& params, const Accumulator<N>& scores, Rows& rows, float (&factor)[2]) {
  float top[2] = {scores[0], scores[2]};
  FLASH3_UNROLL
  for (int i = 1; i < N / 2; ++i) top[half_of(i)] = maximum(top[half_of(i)], scores[i]);
  const bool moved = vote_any(top[0] > rows.limit[0] || top[1] > rows.limit[1]);
  if (moved) {
    FLASH3_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float row_top = row_maximum(top[half]);
      factor[half] = 1;
      if (row_top > rows.limit[half]) {
        const float reference = row_top * params.exponent_scale;
        factor[half] = rows.limit[half] == -infinity ? 0 : exp2_approx(rows.reference[half] - reference);
        rows.reference[half] = reference;
        rows.limit[half] = row_top + params.growth;
        rows.sum[half] *= factor[half];
      }
    }
  }
  return moved;
}

// Scores become probabilities, and join the sums.
template <int N>
FLASH3_DEVICE void exponentiate(const Params& params, Accumulator<N>& scores, Rows& rows) {
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) {
    const int half = half_of(i);
    scores[i] = exp2_approx(fused_multiply_add(scores[i], params.exponent_scale, -rows.reference[half]));
    rows.sum[half] += scores[i];
  }
}

template <int N>
FLASH3_DEVICE void scale_rows(Accumulator<N>& out, const float (&factor)[2]) {
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) out[i] *= factor[half_of(i)];
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
