// The matrix-product micro-kernel that every pass is made of: C[rows][lanes] += A[rows][depth] B[depth][lanes].
//
// A "unit" is 32 bits: one float, or two bfloat16 that are neighbours in the summed dimension. A's units are broadcast,
// B's are read as vectors, so one kernel serves both: only the multiply-add differs.

#if defined(FLASH3_CPU_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_GEMM_INL_H_
#undef FLASH3_CPU_GEMM_INL_H_
#else
#define FLASH3_CPU_GEMM_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Float = hn::ScalableTag<float>;
using Vector = hn::Vec<Float>;
inline constexpr Float lanes_tag;
inline constexpr int lanes = static_cast<int>(hn::MaxLanes(Float()));

using Unit = std::uint32_t;

struct FloatUnits {
  static HWY_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) { return hn::MulAdd(a, b, sum); }
};

// Whether pairs of bfloat16 are multiplied as such. Not on the processors that AVX3_SPR stands for: they issue one such
// product where they issue four of floats, so that floats, which hold bfloat16 exactly, are half as fast again.
#undef FLASH3_CPU_PAIRS
#define FLASH3_CPU_PAIRS (HWY_NATIVE_DOT_BF16 && HWY_TARGET != HWY_AVX3_SPR)

#if FLASH3_CPU_PAIRS
struct Bfloat16Pairs {
  static HWY_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) {
    const hn::Repartition<hwy::bfloat16_t, Float> pairs;
    Vector unused = hn::Zero(lanes_tag);  // the native product leaves it alone
    return hn::ReorderWidenMulAccumulate(lanes_tag, hn::BitCast(pairs, a), hn::BitCast(pairs, b), sum, unused);
  }
};
#endif

// What C holds before: nothing, or a sum to go on with, each lane multiplied by a factor first or not.
enum class Start { zero, sum, scaled_sum };

struct NoMaxima {};
struct Maxima {  // a float a lane: the greatest value that C got there, and what it was before
  float* at;
};

template <int vectors>
HWY_INLINE void load_operands(const float* HWY_RESTRICT from, Vector (&operand)[vectors]) {
  for (int v = 0; v < vectors; ++v) operand[v] = hn::LoadU(lanes_tag, from + v * lanes);
}

// The products of a kind whose units are multiplied vector by vector.
template <class Units>
struct VectorProducts {
  // A tile of row_tile x strip_vectors accumulators, strip_vectors operands and a broadcast fill the registers.
  static constexpr int strip_vectors = 3;
  static constexpr int strip = strip_vectors * lanes;
  static constexpr int row_tile = HWY_TARGET_IS_NEON || HWY_TARGET <= HWY_AVX3 ? 8 : 4;
  static constexpr int depth_step = 1;       // units that rows are filled up to
  static constexpr int column_step = lanes;  // and columns

  struct Setup {};  // what a thread needs while it works: nothing

  // Where A lies: unit (row, depth) is at row * row_stride + depth * depth_stride.
  struct RowMajor {
    std::int64_t row_stride;
    static constexpr std::int64_t depth_stride = 1;
  };
  struct Panel {  // row_tile rows side by side
    static constexpr std::int64_t row_stride = 1;
    static constexpr std::int64_t depth_stride = row_tile;
  };

  // C += A B, or C = A B, for one tile of row_tile rows and `vectors` vectors.
  template <int vectors, Start start, class Layout>
  static HWY_NOINLINE void multiply_tile(std::int64_t depth, const Unit* HWY_RESTRICT a, Layout layout,
                                         const Unit* HWY_RESTRICT b, std::int64_t b_stride, float* HWY_RESTRICT c,
                                         std::int64_t c_stride, const float* HWY_RESTRICT factors) {
    Vector sums[row_tile][vectors];
    for (int r = 0; r < row_tile; ++r) {
      for (int v = 0; v < vectors; ++v) {
        if constexpr (start == Start::zero) {
          sums[r][v] = hn::Zero(lanes_tag);
        } else {
          sums[r][v] = hn::LoadU(lanes_tag, c + r * c_stride + v * lanes);
          if constexpr (start == Start::scaled_sum) {
            sums[r][v] = hn::Mul(sums[r][v], hn::LoadU(lanes_tag, factors + v * lanes));
          }
        }
      }
    }
    const float* HWY_RESTRICT row[row_tile];
    for (int r = 0; r < row_tile; ++r) row[r] = reinterpret_cast<const float*>(a) + r * layout.row_stride;
    const auto* HWY_RESTRICT operands = reinterpret_cast<const float*>(b);
    for (std::int64_t k = 0; k < depth; ++k) {
      Vector operand[vectors];
      load_operands(operands + k * b_stride, operand);
      for (int r = 0; r < row_tile; ++r) {
        const Vector broadcast = hn::Set(lanes_tag, row[r][k * Layout::depth_stride]);
        for (int v = 0; v < vectors; ++v) sums[r][v] = Units::multiply_add(broadcast, operand[v], sums[r][v]);
      }
    }
    for (int r = 0; r < row_tile; ++r) {
      for (int v = 0; v < vectors; ++v) hn::StoreU(sums[r][v], lanes_tag, c + r * c_stride + v * lanes);
    }
  }

  // Scores are added up from short sums of this many units, two at a time: their rounding shows in the exponential.
  static constexpr std::int64_t short_sum = 16;

  // C = A B for one tile of scores.
  template <int vectors, class Track>
  static HWY_NOINLINE void score_tile(std::int64_t depth, const Unit* HWY_RESTRICT a, std::int64_t row_stride,
                                      const Unit* HWY_RESTRICT b, std::int64_t b_stride, float* HWY_RESTRICT c,
                                      std::int64_t c_stride, Track track) {
    constexpr int half_tile = row_tile / 2;
    for (std::int64_t k = 0; k < depth; k += 2 * short_sum) {
      const std::int64_t size = depth - k < 2 * short_sum ? depth - k : 2 * short_sum;
      for (int first = 0; first < row_tile; first += half_tile) {
        const float* HWY_RESTRICT row[half_tile];
        for (int r = 0; r < half_tile; ++r) row[r] = reinterpret_cast<const float*>(a) + (first + r) * row_stride + k;
        const auto* HWY_RESTRICT operands = reinterpret_cast<const float*>(b) + k * b_stride;
        Vector sums[2][half_tile][vectors];
        for (auto& sum : sums) {
          for (auto& of_row : sum) {
            for (Vector& x : of_row) x = hn::Zero(lanes_tag);
          }
        }
        const auto step = [&](std::int64_t at, Vector(&sum)[half_tile][vectors]) HWY_ATTR {
          Vector operand[vectors];
          load_operands(operands + at * b_stride, operand);
          for (int r = 0; r < half_tile; ++r) {
            const Vector broadcast = hn::Set(lanes_tag, row[r][at]);
            for (int v = 0; v < vectors; ++v) sum[r][v] = Units::multiply_add(broadcast, operand[v], sum[r][v]);
          }
        };
        std::int64_t i = 0;
        for (; i + 1 < size; i += 2) {
          step(i, sums[0]);
          step(i + 1, sums[1]);
        }
        if (i < size) step(i, sums[0]);
        for (int v = 0; v < vectors; ++v) {
          for (int r = 0; r < half_tile; ++r) {
            float* at = c + (first + r) * c_stride + v * lanes;
            Vector& sum = sums[0][r][v];
            sum = hn::Add(sum, sums[1][r][v]);
            if (k != 0) sum = hn::Add(sum, hn::LoadU(lanes_tag, at));
            hn::StoreU(sum, lanes_tag, at);
          }
          if constexpr (std::is_same_v<Track, Maxima>) {
            if (k + size == depth) {
              Vector greatest = hn::LoadU(lanes_tag, track.at + v * lanes);
              for (int r = 0; r < half_tile; ++r) greatest = hn::Max(greatest, sums[0][r][v]);
              hn::StoreU(greatest, lanes_tag, track.at + v * lanes);
            }
          }
        }
      }
    }
  }

  // The greatest of a column of scores, given what was tracked.
  static HWY_INLINE Vector greatest(const float* /*scores*/, std::int64_t /*count*/, Vector tracked) { return tracked; }

  // out[lane] = sum over depth of a[depth][lane] b[depth][lane], for a strip; added up exactly as a score is, so that
  // the difference of the two is 0 where they are the same sum.
  static HWY_INLINE void dot_strip(std::int64_t depth, const Unit* HWY_RESTRICT a, const Unit* HWY_RESTRICT b,
                                   const Unit* /*b_rows*/, float* HWY_RESTRICT out) {
    for (int v = 0; v < strip_vectors; ++v) {
      const auto* left = reinterpret_cast<const float*>(a) + v * lanes;
      const auto* right = reinterpret_cast<const float*>(b) + v * lanes;
      Vector total = hn::Zero(lanes_tag);
      for (std::int64_t k = 0; k < depth; k += 2 * short_sum) {
        const std::int64_t end = depth - k < 2 * short_sum ? depth : k + 2 * short_sum;
        Vector even = hn::Zero(lanes_tag), odd = hn::Zero(lanes_tag);
        for (std::int64_t i = k; i < end; ++i) {
          Vector& sum = (i - k) % 2 == 0 ? even : odd;
          sum =
              Units::multiply_add(hn::LoadU(lanes_tag, left + i * strip), hn::LoadU(lanes_tag, right + i * strip), sum);
        }
        total = k == 0 ? hn::Add(even, odd) : hn::Add(hn::Add(even, odd), total);
      }
      hn::StoreU(total, lanes_tag, out + v * lanes);
    }
  }

  // The same for a number of vectors that is known at run time, up to strip_vectors.
  template <class Visit>
  static HWY_INLINE void with_vectors(int vectors, const Visit& visit) {
    static_assert(strip_vectors == 3);
    switch (vectors) {
      case 3:
        return visit(std::integral_constant<int, 3>());
      case 2:
        return visit(std::integral_constant<int, 2>());
      default:
        return visit(std::integral_constant<int, 1>());
    }
  }

  template <Start start, class Layout>
  static HWY_INLINE void multiply_strip(int vectors, std::int64_t depth, const Unit* a, Layout layout, const Unit* b,
                                        std::int64_t b_stride, float* c, std::int64_t c_stride,
                                        const float* factors = nullptr) {
    with_vectors(vectors, [&](auto n) HWY_ATTR {
      multiply_tile<n(), start>(depth, a, layout, b, b_stride, c, c_stride, factors);
    });
  }

  // A's rows are row_stride = depth units long; B and C have rows of a strip.
  template <class Track = NoMaxima>
  static HWY_INLINE void score_strip(int vectors, std::int64_t depth, const Unit* a, const Unit* b, float* c,
                                     Track track = {}) {
    with_vectors(vectors, [&](auto n) HWY_ATTR { score_tile<n()>(depth, a, depth, b, strip, c, strip, track); });
  }

  // Any number of vectors: threes, with twos rather than a one at the end.
  template <Start start, class Layout>
  static HWY_INLINE void multiply_wide(int vectors, std::int64_t depth, const Unit* a, Layout layout, const Unit* b,
                                       std::int64_t b_stride, float* c, std::int64_t c_stride) {
    for (int v = 0; v < vectors;) {
      const int left = vectors - v;
      const int now = left == 4 ? 2 : left < strip_vectors ? left : strip_vectors;
      multiply_strip<start>(now, depth, a, layout, b + v * lanes, b_stride, c + v * lanes, c_stride);
      v += now;
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
