// Rows of tensors become operands of the micro-kernel: converted, padded with zeros, and laid out in units.

#if defined(FLASH3_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_PACK_INL_H_
#undef FLASH3_CPU_PACK_INL_H_
#else
#define FLASH3_CPU_PACK_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstring>
#include <numbers>

#include "core/half.h"
#include "cpu/exp-inl.h"
#include "cpu/gemm-inl.h"
#include "cpu/rows.h"
#include "cpu/tiles-inl.h"
#include "flash3/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// ---- Rows in and out: float, or bfloat16 bits where the processor multiplies those.

// Whether the processor converts float16: Highway's stand-in takes inf and NaN for numbers.
inline constexpr bool converts_float16 = HWY_TARGET_IS_NEON || HWY_TARGET <= HWY_AVX2;

// Converts a row to floats and fills it up with zeros to `padded`. Returns whether all of it is finite.
inline bool load_row(const void* source, DType dtype, std::int64_t size, std::int64_t padded, float* HWY_RESTRICT out) {
  Vector poison = hn::Zero(lanes_tag);  // x * 0 is 0 if x is finite, else NaN
  std::int64_t i = 0;
  const auto whole_vectors = [&](auto load) {
    for (; i + lanes <= size; i += lanes) {
      const Vector x = load(i);
      poison = hn::MulAdd(x, hn::Zero(lanes_tag), poison);
      hn::StoreU(x, lanes_tag, out + i);
    }
  };
  float rest = 0;
  const auto tail = [&](const auto* p) {
    for (; i < size; ++i) {
      out[i] = core::to_float(p[i]);
      rest += out[i] * 0;
    }
  };
  switch (dtype) {
    case DType::float16: {
      const hn::Rebind<hwy::float16_t, Float> halves;
      const auto* p = static_cast<const hwy::float16_t*>(source);
      if constexpr (converts_float16) {
        whole_vectors([&](std::int64_t at) { return hn::PromoteTo(lanes_tag, hn::LoadU(halves, p + at)); });
      }
      tail(static_cast<const core::float16*>(source));
      break;
    }
    case DType::bfloat16: {
      const hn::Rebind<hwy::bfloat16_t, Float> halves;
      const auto* p = static_cast<const hwy::bfloat16_t*>(source);
      whole_vectors([&](std::int64_t at) { return hn::PromoteTo(lanes_tag, hn::LoadU(halves, p + at)); });
      tail(static_cast<const core::bfloat16*>(source));
      break;
    }
    default: {
      const auto* p = static_cast<const float*>(source);
      whole_vectors([&](std::int64_t at) { return hn::LoadU(lanes_tag, p + at); });
      tail(p);
    }
  }
  for (; i < padded; ++i) out[i] = 0;
  return rest == 0 && hn::AllFalse(lanes_tag, hn::IsNaN(poison));
}

inline bool load_row(const void* source, DType, std::int64_t size, std::int64_t padded,
                     std::uint16_t* HWY_RESTRICT out) {
  constexpr std::uint16_t infinite = 0x7f80;  // and greater, up to the sign: NaN
  const hn::Repartition<std::uint16_t, Float> halves;
  const auto* p = static_cast<const std::uint16_t*>(source);
  auto greatest = hn::Zero(halves);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    const auto x = hn::LoadU(halves, p + i);
    greatest = hn::Max(greatest, hn::And(x, hn::Set(halves, std::uint16_t{0x7fff})));
    hn::StoreU(x, halves, out + i);
  }
  bool finite = hn::AllTrue(halves, hn::Lt(greatest, hn::Set(halves, infinite)));
  for (; i < size; ++i) {
    out[i] = p[i];
    finite &= (p[i] & infinite) != infinite;
  }
  std::fill(out + i, out + padded, std::uint16_t{0});
  return finite;
}

inline void store_row(const float* HWY_RESTRICT row, std::int64_t size, DType dtype, void* target) {
  std::int64_t i = 0;
  switch (dtype) {
    case DType::float16: {
      const hn::Rebind<hwy::float16_t, Float> halves;
      auto* p = static_cast<core::float16*>(target);
      for (; converts_float16 && i + lanes <= size; i += lanes) {
        hn::StoreU(hn::DemoteTo(halves, hn::LoadU(lanes_tag, row + i)), halves,
                   reinterpret_cast<hwy::float16_t*>(p + i));
      }
      for (; i < size; ++i) p[i] = core::to_float16(row[i]);
      break;
    }
    case DType::bfloat16: {
      const hn::Rebind<hwy::bfloat16_t, Float> halves;
      auto* p = static_cast<core::bfloat16*>(target);
      for (; i + lanes <= size; i += lanes) {
        hn::StoreU(hn::DemoteTo(halves, hn::LoadU(lanes_tag, row + i)), halves,
                   reinterpret_cast<hwy::bfloat16_t*>(p + i));
      }
      for (; i < size; ++i) p[i] = core::to_bfloat16(row[i]);
      break;
    }
    default:
      std::memcpy(target, row, static_cast<std::size_t>(size) * sizeof(float));
  }
}

// ---- Layouts

// out[column][row] = in[row][column] for 32-bit elements.
HWY_NOINLINE void transpose(const Unit* HWY_RESTRICT in, std::int64_t in_stride, std::int64_t rows,
                            std::int64_t columns, Unit* HWY_RESTRICT out, std::int64_t out_stride) {
  const hn::FixedTag<Unit, 4> four;
  const hn::Repartition<std::uint64_t, decltype(four)> two;
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const Unit* from = in + r * in_stride;
    std::int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      const auto r0 = hn::LoadU(four, from + c), r1 = hn::LoadU(four, from + in_stride + c);
      const auto r2 = hn::LoadU(four, from + 2 * in_stride + c), r3 = hn::LoadU(four, from + 3 * in_stride + c);
      const auto low01 = hn::BitCast(two, hn::InterleaveLower(four, r0, r1));
      const auto low23 = hn::BitCast(two, hn::InterleaveLower(four, r2, r3));
      const auto high01 = hn::BitCast(two, hn::InterleaveUpper(four, r0, r1));
      const auto high23 = hn::BitCast(two, hn::InterleaveUpper(four, r2, r3));
      Unit* to = out + c * out_stride + r;
      hn::StoreU(hn::BitCast(four, hn::InterleaveLower(two, low01, low23)), four, to);
      hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(two, low01, low23)), four, to + out_stride);
      hn::StoreU(hn::BitCast(four, hn::InterleaveLower(two, high01, high23)), four, to + 2 * out_stride);
      hn::StoreU(hn::BitCast(four, hn::InterleaveUpper(two, high01, high23)), four, to + 3 * out_stride);
    }
    for (; c < columns; ++c) {
      for (std::int64_t i = 0; i < 4; ++i) out[c * out_stride + r + i] = from[i * in_stride + c];
    }
  }
  for (; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

// What the two kinds of units hold, and how rows become "depth-major" operands: for each unit of depth (one row, or a
// pair of rows), `width` columns side by side.
struct FloatLayout {
  using Element = float;
  static constexpr std::int64_t per_unit = 1;

  static void depth_major(const float* HWY_RESTRICT rows, std::int64_t stride, std::int64_t count, std::int64_t width,
                          Unit* HWY_RESTRICT out, std::int64_t out_stride) {
    for (std::int64_t r = 0; r < count; ++r) {
      std::memcpy(out + r * out_stride, rows + r * stride, static_cast<std::size_t>(width) * sizeof(float));
    }
  }
};

struct PairLayout {
  using Element = std::uint16_t;
  static constexpr std::int64_t per_unit = 2;

  static void depth_major(const std::uint16_t* HWY_RESTRICT rows, std::int64_t stride, std::int64_t count,
                          std::int64_t width, Unit* HWY_RESTRICT out, std::int64_t out_stride) {
    const hn::FixedTag<std::uint16_t, 8> eight;
    for (std::int64_t r = 0; r < count; r += 2) {
      const std::uint16_t* first = rows + r * stride;
      const std::uint16_t* second = first + stride;
      auto* to = reinterpret_cast<std::uint16_t*>(out + r / 2 * out_stride);
      std::int64_t c = 0;
      for (; c + 8 <= width; c += 8) {
        const auto a = hn::LoadU(eight, first + c), b = hn::LoadU(eight, second + c);
        hn::StoreU(hn::InterleaveLower(eight, a, b), eight, to + 2 * c);
        hn::StoreU(hn::InterleaveUpper(eight, a, b), eight, to + 2 * c + 8);
      }
      for (; c < width; ++c) {
        to[2 * c] = first[c];
        to[2 * c + 1] = second[c];
      }
    }
  }
};

// One element of an operand, as a float: the slow way in, for the paths that must be exact row by row.
inline float element(float x) { return x; }
inline float element(std::uint16_t x) { return core::to_float(core::bfloat16{x}); }

template <class Layout>
float depth_major_element(const Unit* operand, std::int64_t stride, std::int64_t depth, std::int64_t column) {
  const auto* units = reinterpret_cast<const typename Layout::Element*>(operand + depth / Layout::per_unit * stride);
  return element(units[column * Layout::per_unit + depth % Layout::per_unit]);
}

// How each kind of unit is computed with and laid out, and how the passes take its work apart:
//   forward_block_keys               keys whose values are added at a time
//   group_keys                       keys that become weights at a time; as many: weights are made in place
//   most_strips                      strips that go through the keys together, if there are enough to keep threads busy
//   log2_most_weight                 how far maxima may leave the origin of the weights behind; 0: not at all
//   weights_together                 vectors of weights that are made step by step
//   backward_block_keys, backward_tile_strips   keys and strips of the backward pass

// Panels are depth-major.
template <class Units, class Layout>
struct VectorKind : VectorProducts<Units>, Layout {
  using Products = VectorProducts<Units>;
  static constexpr int forward_block_keys = 256;  // a block's weights and its part of V stay in the second-level cache
  static constexpr int most_strips = 1;
  static constexpr float log2_most_weight = 0;
  static constexpr int weights_together = static_cast<int>(Layout::per_unit);
  static constexpr int group_keys = forward_block_keys;
  static constexpr int backward_block_keys = 128;
  static constexpr int backward_tile_strips = 4;

  // row_tile rows and columns of a tensor become part of a panel, whose rows are the columns.
  static void pack_panel(const typename Layout::Element* rows, std::int64_t stride, Unit* out) {
    Layout::depth_major(rows, stride, Products::row_tile, Products::row_tile, out, Products::row_tile);
  }
  static float panel_element(const Unit* panel, std::int64_t depth, std::int64_t row) {
    return depth_major_element<Layout>(panel, Products::row_tile, depth, row);
  }
  static HWY_INLINE Vector exp2(Vector x) { return HWY_NAMESPACE::exp2(x); }
  template <int count>
  static HWY_INLINE void exp2(Vector (&x)[count]) {
    for (Vector& one : x) one = exp2(one);
  }
  static HWY_INLINE Vector exp(Vector x) { return HWY_NAMESPACE::exp(x); }
};

struct FloatKind : VectorKind<FloatUnits, FloatLayout> {
  static constexpr const char* products = "float32";
};

inline const void* at_offset(const void* data, DType dtype, std::int64_t offset) {
  return static_cast<const std::byte*>(data) + offset * static_cast<std::int64_t>(size_of(dtype));
}
inline void* at_offset(void* data, DType dtype, std::int64_t offset) {
  return static_cast<std::byte*>(data) + offset * static_cast<std::int64_t>(size_of(dtype));
}

// Units of a row of that many elements.
template <class Kind>
constexpr std::int64_t units_of(std::int64_t size) {
  return round_up(divide_up(size, Kind::per_unit), Kind::depth_step);
}

#if FLASH3_CPU_PAIRS || FLASH3_CPU_TILES
// Floats become pairs of bfloat16.
struct PairRounding {
  // Lane by lane, two floats rounded to bfloat16 as one unit.
  static HWY_INLINE Vector pair(Vector first, Vector second) {
    const hn::Repartition<std::uint16_t, Float> sixteen;
    alignas(64) static constexpr auto order = [] {
      std::array<std::uint16_t, 2 * lanes> o{};
      for (std::uint16_t i = 0; i < lanes; ++i) {
        o[2 * i] = i;
        o[2 * i + 1] = static_cast<std::uint16_t>(lanes + i);
      }
      return o;
    }();
    return hn::BitCast(lanes_tag,
                       hn::TableLookupLanes(in_order(first, second), hn::SetTableIndices(sixteen, order.data())));
  }

  // Two rows of bfloat16.
  static HWY_INLINE void store_rows(Vector first, Vector second, std::uint16_t* HWY_RESTRICT at, std::int64_t stride) {
    const hn::Half<hn::Repartition<std::uint16_t, Float>> half;
    const auto both = in_order(first, second);
    hn::StoreU(hn::LowerHalf(half, both), half, at);
    hn::StoreU(hn::UpperHalf(half, both), half, at + stride);
  }

  // The lanes of one vector after those of the other, rounded to bfloat16.
  static HWY_INLINE hn::Vec<hn::Repartition<std::uint16_t, Float>> in_order(Vector first, Vector second) {
    const hn::Repartition<hwy::bfloat16_t, Float> halves;
    return hn::BitCast(hn::Repartition<std::uint16_t, Float>(), hn::OrderedDemote2To(halves, first, second));
  }
  static HWY_INLINE Vector pair_of_weights(Vector first, Vector second) { return pair(first, second); }
};
#endif
#if FLASH3_CPU_PAIRS
struct PairKind : VectorKind<Bfloat16Pairs, PairLayout>, PairRounding {
  static constexpr const char* products = "bfloat16";
};
#endif
#if FLASH3_CPU_TILES
struct TileKind : TileProducts, PairLayout, PairRounding {
  static constexpr const char* products = "AMX bfloat16";
  // What a strip works on stays in the first-level cache: a tile's scores, its keys, the queries. Sums are fetched and
  // put back rarely, for many keys at a time, which they are not to be scaled between.
  static constexpr int forward_block_keys = 512;
  static constexpr int group_keys = row_tile;
  static constexpr int most_strips = 8;
  static constexpr float log2_most_weight = 8;
  static constexpr int weights_together = 8;
  static constexpr int backward_block_keys = 128;
  static constexpr int backward_tile_strips = 4;

  // Panels are row-major for depth_step units at a time.
  static void pack_panel(const std::uint16_t* rows, std::int64_t stride, Unit* out) {
    static_assert(row_tile == per_unit * depth_step);
    Unit pairs[depth_step * row_tile];
    depth_major(rows, stride, row_tile, row_tile, pairs, row_tile);
    transpose(pairs, row_tile, depth_step, row_tile, out, depth_step);
  }
  static float panel_element(const Unit* panel, std::int64_t depth, std::int64_t row) {
    const auto* of_step = reinterpret_cast<const std::uint16_t*>(panel + depth / row_tile * Panel::step_stride);
    return element(of_step[row * row_tile + depth % row_tile]);
  }
  template <int count>
  static HWY_INLINE void exp2(Vector (&x)[count]) {
    short_exp2(x);
  }
  static HWY_INLINE Vector exp2(Vector x) {
    Vector one[] = {x};
    short_exp2(one);
    return one[0];
  }
  // Relative error |x| 6e-8 for large |x|: weights, which are rounded to bfloat16, do not show it.
  static HWY_INLINE Vector exp(Vector x) {
    return exp2(hn::Mul(x, hn::Set(lanes_tag, static_cast<float>(std::numbers::log2e))));
  }

  // Two weights rounded to bfloat16 as one unit, lane by lane; ties go up. A NaN may get lost: it is in the sum too.
  static HWY_INLINE Vector pair_of_weights(Vector first, Vector second) {
    const hn::RebindToUnsigned<Float> units;
    const auto half = hn::Set(units, 0x8000u);
    const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(units, first), half));
    const auto high = hn::Add(hn::BitCast(units, second), half);
    return hn::BitCast(lanes_tag, hn::OrAnd(low, high, hn::Set(units, 0xffff0000u)));
  }
};
#endif

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
