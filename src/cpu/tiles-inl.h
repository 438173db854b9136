// The products on the tile unit (Intel AMX): registers of 16 rows x 64 bytes, multiplied as bfloat16, added up as
// float.
//
// A tile of A is 16 rows x 32 bfloat16, one of B 16 units x 16 lanes: what units are, so B and C are laid out as for
// vectors. Highway has no names for this unit, so these are the processor's.

#if defined(FLASH3_CPU_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_TILES_INL_H_
#undef FLASH3_CPU_TILES_INL_H_
#else
#define FLASH3_CPU_TILES_INL_H_
#endif

#include <atomic>

#include "cpu/gemm-inl.h"

// Every processor with the tile unit has what AVX3_SPR stands for.
#undef FLASH3_CPU_TILES
#define FLASH3_CPU_TILES (HWY_TARGET == HWY_AVX3_SPR)

#if FLASH3_CPU_TILES
#include <immintrin.h>

// Functions that name tile registers. None is inlined: the compiler does not know that the registers are in use.
#undef FLASH3_CPU_TILE_FUNCTION
#define FLASH3_CPU_TILE_FUNCTION __attribute__((noinline, target("amx-tile,amx-bf16")))

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// Eight registers, all of full size.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// While it lives, the thread may use tiles. The thread's configuration is as before afterwards, without what its
// registers held, which no function may leave there.
class TileSetup {
 public:
  TileSetup() { enter(&before_, &whole); }
  ~TileSetup() { leave(&before_); }
  TileSetup(const TileSetup&) = delete;
  TileSetup& operator=(const TileSetup&) = delete;

 private:
  static constexpr TileConfiguration whole{};

  static FLASH3_CPU_TILE_FUNCTION void enter(TileConfiguration* before, const TileConfiguration* now) {
    _tile_storeconfig(before);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    _tile_loadconfig(now);
  }
  static FLASH3_CPU_TILE_FUNCTION void leave(const TileConfiguration* before) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (before->palette == 0) {
      _tile_release();
    } else {
      _tile_loadconfig(before);
    }
  }

  TileConfiguration before_;
};

struct TileProducts {
  using Setup = TileSetup;

  // 2 x 2 tiles of C with what they are made of: every operand that is loaded is used twice.
  static constexpr int strip_vectors = 4;
  static constexpr int strip = strip_vectors * lanes;
  static constexpr int row_tile = 32;
  static constexpr int depth_step = 16;  // units that a tile multiplies
  static constexpr int column_step = row_tile;

  // Where A lies: a row's units are side by side for depth_step at a time.
  struct RowMajor {
    std::int64_t row_stride;
    static constexpr std::int64_t step_stride = depth_step;
  };
  struct Panel {  // row_tile rows of depth_step units, then their next units
    static constexpr std::int64_t row_stride = depth_step;
    static constexpr std::int64_t step_stride = row_tile * depth_step;
  };

  // C += A B, or C = A B, for row_tile rows and any number of vectors.
  template <Start start, class Layout>
  static void multiply_strip(int vectors, std::int64_t depth, const Unit* a, Layout layout, const Unit* b,
                             std::int64_t b_stride, float* c, std::int64_t c_stride, const float* factors = nullptr) {
    if constexpr (start == Start::scaled_sum) scale(vectors, c, c_stride, factors);
    const Block block{depth / depth_step, layout.row_stride, Layout::step_stride, b_stride, c_stride};
    int v = 0;
    for (; v + 2 <= vectors; v += 2) multiply_tiles<start == Start::zero, true>(block, a, b + v * lanes, c + v * lanes);
    if (v < vectors) multiply_tiles<start == Start::zero, false>(block, a, b + v * lanes, c + v * lanes);
  }
  template <Start start, class Layout>
  static void multiply_wide(int vectors, std::int64_t depth, const Unit* a, Layout layout, const Unit* b,
                            std::int64_t b_stride, float* c, std::int64_t c_stride) {
    multiply_strip<start>(vectors, depth, a, layout, b, b_stride, c, c_stride);
  }

  // C = A B for a tile of scores. The unit adds up short sums by itself: 16 products each, two at a time.
  // Tracks no maxima: to read scores before the next are under way would be to wait for them.
  template <class Track = NoMaxima>
  static void score_strip(int vectors, std::int64_t depth, const Unit* a, const Unit* b, float* c, Track = {}) {
    multiply_strip<Start::zero>(vectors, depth, a, RowMajor{depth}, b, strip, c, strip);
  }
  // The greatest of a column of scores, if that is still to be found.
  static HWY_INLINE Vector greatest(const float* scores, std::int64_t count, Vector /*tracked*/) {
    Vector found[4] = {hn::Load(lanes_tag, scores), hn::Load(lanes_tag, scores + strip),
                       hn::Load(lanes_tag, scores + 2 * strip), hn::Load(lanes_tag, scores + 3 * strip)};
    for (std::int64_t k = 4; k < count; k += 4) {
      for (int i = 0; i < 4; ++i) found[i] = hn::Max(found[i], hn::Load(lanes_tag, scores + (k + i) * strip));
    }
    return hn::Max(hn::Max(found[0], found[1]), hn::Max(found[2], found[3]));
  }

  // out[lane] = sum over depth of a[depth][lane] b[lane][depth], for a strip; added up exactly as a score is: it is the
  // diagonal of scores.
  static void dot_strip(std::int64_t depth, const Unit* a, const Unit* /*b_transposed*/, const Unit* b, float* out) {
    alignas(64) float products[row_tile * row_tile];
    for (int first = 0; first < strip; first += row_tile) {
      multiply_strip<Start::zero>(row_tile / lanes, depth, b + first * depth, RowMajor{depth}, a + first, strip,
                                  products, row_tile);
      for (int lane = 0; lane < row_tile; ++lane) out[first + lane] = products[lane * row_tile + lane];
    }
  }

 private:
  struct Block {
    std::int64_t steps;
    std::int64_t a_row, a_step, b_row, c_row;  // strides
  };

  static HWY_INLINE void scale(int vectors, float* c, std::int64_t c_stride, const float* factors) {
    for (int v = 0; v < vectors; ++v) {
      const Vector factor = hn::Load(lanes_tag, factors + v * lanes);
      // Mostly the maxima stay what they are.
      if (hn::AllTrue(lanes_tag, hn::Eq(factor, hn::Set(lanes_tag, 1.0f)))) continue;
      for (int r = 0; r < row_tile; ++r) {
        float* at = c + r * c_stride + v * lanes;
        hn::Store(hn::Mul(hn::Load(lanes_tag, at), factor), lanes_tag, at);
      }
    }
  }

  // The compiler may not know that a tile load reads memory: the fences tell it.

  // Two tiles below each other, and with `wide` the two right of them.
  template <bool zero, bool wide>
  static FLASH3_CPU_TILE_FUNCTION void multiply_tiles(const Block block, const Unit* a, const Unit* b, float* c) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    const std::int64_t a_row = block.a_row * 4, b_row = block.b_row * 4, c_row = block.c_row * 4;
    float* c_low = c + 16 * block.c_row;
    if constexpr (zero) {
      _tile_zero(0);
      if constexpr (wide) _tile_zero(1);
      _tile_zero(2);
      if constexpr (wide) _tile_zero(3);
    } else {
      _tile_loadd(0, c, c_row);
      if constexpr (wide) _tile_loadd(1, c + 16, c_row);
      _tile_loadd(2, c_low, c_row);
      if constexpr (wide) _tile_loadd(3, c_low + 16, c_row);
    }
    for (std::int64_t step = 0; step < block.steps; ++step) {
      _tile_loadd(4, a, a_row);
      _tile_loadd(6, b, b_row);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (wide) {
        _tile_loadd(7, b + 16, b_row);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_loadd(5, a + 16 * block.a_row, a_row);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (wide) _tile_dpbf16ps(3, 5, 7);
      a += block.a_step;
      b += 16 * block.b_row;
    }
    _tile_stored(0, c, c_row);
    if constexpr (wide) _tile_stored(1, c + 16, c_row);
    _tile_stored(2, c_low, c_row);
    if constexpr (wide) _tile_stored(3, c_low + 16, c_row);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif  // FLASH3_CPU_TILES
#endif
