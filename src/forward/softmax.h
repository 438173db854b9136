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
// The reference need not be the row's maximum, only near it: float32 and 16-bit floats keep their precision at another
// scale, and what is divided by in the end carries the same factor. It is set `growth` above the first maximum, and
// moves when a score rises above it, which after a row's first block is rare, and exact whenever it happens. So in the
// common case nobody looks for a maximum: that all exponents are negative is seen from their signs, two at a time.
// Whether a row's reference moves depends on that row alone, so that its bits do not depend on its neighbours.
struct Rows {
  float reference[2] = {0, 0};  // in exponents; 0 while no key has been seen
  bool seen[2] = {false, false};
  bool settled = false;   // every row of the warp has seen a key
  float sum[2] = {0, 0};  // of this thread's columns
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
  const int shift = first_key + 2 * (lane_index() & 3);
  const int begin[2] = {visible.key_begin[0] - shift, visible.key_begin[1] - shift};
  const int end[2] = {visible.key_end[0] - shift, visible.key_end[1] - shift};
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) {
    const int column = column_of(i, 0), half = half_of(i);
    if (column < begin[half] || column >= end[half]) scores[i] = -infinity;
  }
}

// A new reference for rows whose maximum is `top` exponents above the old one; `factor` is what that multiplies
// earlier probabilities and the row's output by.
FLASH3_DEVICE void lift_reference(const Params& params, Rows& rows, int half, float top, float& factor) {
  const float before = rows.reference[half];
  rows.reference[half] = before + (top + params.growth);
  factor = exp2_approx(before - rows.reference[half]);
  rows.sum[half] *= factor;
}

template <int N>
FLASH3_DEVICE void find_tops(const Accumulator<N>& values, float (&top)[2]) {
  top[0] = values[0];
  top[1] = values[2];
  FLASH3_UNROLL
  for (int i = 1; i < N / 2; ++i) top[half_of(i)] = maximum(top[half_of(i)], values[i]);
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) top[half] = row_maximum(top[half]);
}

// References from scores that may be masked, for rows that may have none yet.
template <int N>
FLASH3_DEVICE void settle_references(const Params& params, const Accumulator<N>& scores, Rows& rows,
                                     float (&factor)[2]) {
  float top[2];
  find_tops(scores, top);
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    factor[half] = 1;
    const float above = fused_multiply_add(top[half], params.exponent_scale, -rows.reference[half]);
    if (rows.seen[half]) {
      if (above > 0) lift_reference(params, rows, half, above, factor[half]);
    } else if (top[half] > -infinity) {
      rows.seen[half] = true;
      rows.reference[half] = above + params.growth;
    }
  }
  rows.settled = vote_all(rows.seen[0] && rows.seen[1]);
}

// Scores become exponents. Returns whether one of the thread's is above its reference, or NaN.
template <int N>
FLASH3_DEVICE bool to_exponents(const Params& params, Accumulator<N>& scores, const Rows& rows) {
  unsigned signs = ~0u;
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) {
    scores[i] = fused_multiply_add(scores[i], params.exponent_scale, -rows.reference[half_of(i)]);
  }
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; i += 2) signs &= float_to_bits(scores[i]) & float_to_bits(scores[i + 1]);
  return signs >> 31 == 0;
}

// References from exponents, some of which are above 0.
template <int N>
FLASH3_DEVICE void raise_references(const Params& params, Accumulator<N>& exponents, Rows& rows, float (&factor)[2]) {
  float top[2];
  find_tops(exponents, top);
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    factor[half] = 1;
    if (!(top[half] > 0)) continue;
    const float before = rows.reference[half];
    lift_reference(params, rows, half, top[half], factor[half]);
    const float lift = rows.reference[half] - before;
    FLASH3_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      if (half_of(i) == half) exponents[i] -= lift;
    }
  }
}

// Exponents become probabilities, and join the sums.
template <int N>
FLASH3_DEVICE void exponentiate(Accumulator<N>& exponents, Rows& rows) {
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) {
    exponents[i] = exp2_approx(exponents[i]);
    rows.sum[half_of(i)] += exponents[i];
  }
}

template <int N>
FLASH3_DEVICE void scale_rows(Accumulator<N>& out, const float (&factor)[2]) {
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) out[i] *= factor[half_of(i)];
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
