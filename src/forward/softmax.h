// The online softmax of one warpgroup's 64 rows: a reference exponent and a sum a row, and when the reference moves.
#pragma once

#include "forward/params.h"
#include "hopper/hopper.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

inline constexpr float infinity = __builtin_huge_valf();
inline constexpr float log2_e = 1.4426950408889634f;
inline constexpr float ln_2 = 0.6931471805599453f;

// The reference of a row no key of which has been seen: the next exponent exceeds it, and -inf gives probability 0.
inline constexpr float unseen = -__FLT_MAX__;
// What a maximum may exceed the reference by, in exponents.
inline constexpr float growth = 4;
// What a thread's sum of a block's probabilities may be before the reference moves. On N(0, 1) it is about an eighth of
// its 16 to 32 columns; where all scores are equal it is their number, and such rows move once at most.
inline constexpr float most_sum = 16;
// Beyond this sum the row is given up, and computed anew in the end (repair.h). Nearly all of float32's range: no
// further than its reciprocal is exact.
inline constexpr float overflow_sum = 0x1p100f;
// So is a row whose reference is as far from 0: the exponent of its largest score would be off by the reference's
// rounding, 2^-8 here.
inline constexpr float exact_reference = 0x1p16f;

// The two rows that a thread shares with the other three of its quad. probability = 2^(score x scale - reference).
//
// The reference need not be the row's maximum, only near it: float32 and bfloat16 keep their precision at any scale,
// and what is divided by in the end carries the same factor. A tile's first blocks set it to the maximum. From then on
// a kernel that judges by sums (plan::ForwardTile) looks at no maximum any more: the row's sums of probabilities tell
// whether a score far exceeded it (lower_probabilities). Others let it lag behind the maximum by `growth`. More, in
// either case, would cost accuracy where one key dominates, whose probability is then rounded instead of being 1.
//
// When a row's reference moves, and by how much, depends on that row alone: so do its bits.
struct Rows {
  float reference[2] = {unseen, unseen};  // in exponents
  float sum[2] = {0, 0};                  // of this thread's columns
};

// What a block's softmax makes, besides probabilities in the place of scores: their sums, and what the rows' output is
// to be multiplied by.
struct BlockSums {
  float sum[2];
  float factor[2];
};

// At the tile's end: what O is multiplied by, and the logarithm to base 2 of the sum of exponentials.
struct ClosedRow {
  float factor;
  float lse;
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

// Keys that a thread's rows see, as key_begin[half] <= key < key_end[half]; key_begin may be negative.
struct Visible {
  int key_begin[2], key_end[2];
};

// A thread has columns 0, 1, 8, 9, 16, 17 ... of a row of N, from its first on: one bit for each that is below
// `column`.
template <int N>
FLASH3_DEVICE unsigned columns_below(int column) {
  static_assert(N <= 128, "a bit for each of a row's columns");
  const int in_eight = column & 7;
  int count = 2 * (column >> 3) + (in_eight < 2 ? in_eight : 2);
  count = count > 0 ? count : 0;
  if constexpr (N == 128) {
    if (count > 31) return ~0u;
  } else {
    count = count < N / 4 ? count : N / 4;
  }
  return (1u << count) - 1;
}

template <int N>
FLASH3_DEVICE void mask_scores(Accumulator<N>& scores, const Visible& visible, int first_key) {
  const int first = first_key + column_of(0, opaque(lane_index()));
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    const unsigned seen =
        columns_below<N>(visible.key_end[half] - first) & ~columns_below<N>(visible.key_begin[half] - first);
    FLASH3_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      if (half_of(i) == half && (seen >> (column_of(i, 0) / 8 * 2 + i % 2) & 1) == 0) scores[i] = -infinity;
    }
  }
}

// Moves references that the block's maxima exceed by more than `lag`. Returns whether one of the warp's rows moved;
// block.factor is then what that multiplies the row's output by (1 for rows that stayed).
template <int N>
FLASH3_DEVICE bool move_references(const Params& params, const Accumulator<N>& scores, float lag, Rows& rows,
                                   BlockSums& block) {
  float top[2] = {scores[0], scores[2]};
  FLASH3_UNROLL
  for (int i = 1; i < N / 2; ++i) top[half_of(i)] = maximum(top[half_of(i)], scores[i]);
  const float scale = params.exponent_scale;
  const bool moved = vote_any(top[0] * scale > rows.reference[0] + lag || top[1] * scale > rows.reference[1] + lag);
  if (moved) {
    FLASH3_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float reference = row_maximum(top[half]) * scale;
      block.factor[half] = 1;
      if (reference > rows.reference[half] + lag) {
        block.factor[half] = exp2_approx(rows.reference[half] - reference);
        const bool exact = reference > -exact_reference && reference < exact_reference;
        rows.reference[half] = exact ? reference : infinity;
        rows.sum[half] *= block.factor[half];
      }
    }
  }
  return moved;
}

// Scores become probabilities; block.sum is theirs. Row by row, multiply-adds that follow each other read the same
// reference and fetch it once; while wgmma takes registers' ports, that is worth 3 %. The compiler would take the rows
// in turn, hence not_before.
template <bool row_by_row, int N>
FLASH3_DEVICE void exponentiate(const Params& params, Accumulator<N>& scores, const Rows& rows, BlockSums& block) {
  float reference = rows.reference[0];
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    float last = 0;
    FLASH3_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      if (half_of(i) == half) {
        last = scores[i] = fused_multiply_add(scores[i], params.exponent_scale, -reference);
      }
    }
    if (half == 0) reference = row_by_row ? not_before(rows.reference[1], last, params.zero) : rows.reference[1];
    block.sum[half] = 0;
    FLASH3_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      if (half_of(i) == half) block.sum[half] += scores[i] = exp2_approx(scores[i]);
    }
  }
}

// Moves the references of rows whose sums, in one of a quad's threads, are too large, and the block's probabilities
// with them. block.factor as above. A row that is given up gets a reference of infinity: no further score matters, and
// no sum becomes NaN by it.
template <int N>
FLASH3_DEVICE void lower_probabilities(Accumulator<N>& probabilities, Rows& rows, BlockSums& block) {
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    float top = 0;
    FLASH3_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      if (half_of(i) == half) top = maximum(top, probabilities[i]);
    }
    top = row_maximum(top);
    const float most = row_maximum(block.sum[half]);
    block.factor[half] = 1;
    if (most >= overflow_sum) {
      rows.reference[half] = infinity;
      block.sum[half] = 0;
    } else if (most > most_sum) {
      const float by = 2 * top > most ? top : most;  // a key that dominates gets probability 1
      const float factor = rcp_approx(by);
      block.factor[half] = factor;
      rows.reference[half] += log2_approx(by);
      rows.sum[half] *= factor;
      block.sum[half] *= factor;
      FLASH3_UNROLL
      for (int i = 0; i < N / 2; ++i) {
        if (half_of(i) == half) probabilities[i] *= factor;
      }
    }
  }
}

template <int N>
FLASH3_DEVICE void scale_rows(Accumulator<N>& out, const float (&factor)[2]) {
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) out[i] *= factor[half_of(i)];
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
