// A tile's end: sinks, division by the sums, log-sum-exp, and the way of O to global memory.
#pragma once

#include "forward/repair.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// Closes the sums, and writes the log-sum-exp if asked for. Rows that are to be computed anew get a factor all the
// same.
template <class C>
FLASH3_DEVICE void close_rows(const Params& params, const Tile& tile, int warpgroup, const Rows& rows,
                              float (&factor)[2], bool (&bad)[2]) {
  const int existing = tile[tile_seqlen_q] - tile[tile_position];
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = warpgroup * 64 + row_of(half, opaque(thread_index()) % 128);
    const float total = row_sum(rows.sum[half]);
    const ClosedRow closed = close_row(params, tile, row, rows.reference[half], total);
    factor[half] = closed.factor;
    bad[half] = has_overflowed(rows.reference[half], total);
    if (params.lse != nullptr && opaque(lane_index()) % 4 == 0 && position_in_tile(params, row) < existing) {
      store_global(lse_of_row(params, tile, row), closed.lse * ln_2);
    }
  }
}

// O, rounded, to global memory. A warp passes its 16 rows through a place of its own in shared memory, some columns at
// a time, so that L2 sees rows of 128 bytes (64 where head_dim_v is no multiple of 64); no warp waits for another.
template <class C>
FLASH3_DEVICE void store_out(const Params& params, Shared<C>& shared, const Tile& tile, int warpgroup,
                             const Accumulator<C::head_dim_v>& out) {
  using T = typename C::Element;
  constexpr int columns = C::tile.out_columns(), row_chunks = columns / 8, rows_at_once = 32 / row_chunks;
  const int lane = opaque(lane_index()), warp = opaque(thread_index()) % 128 / 32;
  const int column = lane % row_chunks * 8, first_row = warp * 16 + lane / row_chunks;
  const int rows = tile[tile_seqlen_q] - tile[tile_position];
  const auto exists = [&](int row) { return position_in_tile(params, warpgroup * 64 + row) < rows; };
  T* target[16 / rows_at_once];
  FLASH3_UNROLL
  for (int i = 0; i < 16 / rows_at_once; ++i) {
    target[i] = out_row<T>(params, tile, warpgroup * 64 + first_row + i * rows_at_once) + column;
  }
  FLASH3_UNROLL
  for (int begin = 0; begin < C::head_dim_v; begin += columns) {
    auto& place = shared.out[warpgroup][begin / columns % C::tile.out_places()];
    FLASH3_UNROLL
    for (int i = begin / 16; i < (begin + columns) / 16; ++i) {
      const unsigned words[4] = {pack<T>(out[8 * i], out[8 * i + 1]), pack<T>(out[8 * i + 2], out[8 * i + 3]),
                                 pack<T>(out[8 * i + 4], out[8 * i + 5]), pack<T>(out[8 * i + 6], out[8 * i + 7])};
      stmatrix_x4(place.address(warp * 16 + lane % 16, i * 16 - begin + lane / 16 * 8), words);
    }
    sync_warp();  // also lets the next but one overwrite what was read from this place
    const int left = params.head_dim_v - begin - column;
    FLASH3_UNROLL
    for (int i = 0; i < 16 / rows_at_once; ++i) {
      const int row = first_row + i * rows_at_once;
      const Words4 words = load_shared_16(place.address(row, column));
      if (exists(row) && left >= 8) store_global_16(target[i] + begin, words);
    }
    if (left <= 0 || left >= 8) continue;
    FLASH3_NO_UNROLL
    for (int row = first_row; row < warp * 16 + 16 && exists(row); row += rows_at_once) {
      T* ragged = out_row<T>(params, tile, warpgroup * 64 + row) + begin + column;
      FLASH3_NO_UNROLL
      for (int e = 0; e < left; ++e) store_global(ragged + e, T{load_shared_2(place.address(row, column + e))});
    }
  }
}

template <class C>
FLASH3_DEVICE void finish_tile(const Params& params, Shared<C>& shared, const Tile& tile, int warpgroup,
                               const Rows& rows, Accumulator<C::head_dim_v>& out) {
  float factor[2];
  bool bad[2];
  close_rows<C>(params, tile, warpgroup, rows, factor, bad);
  scale_rows(out, factor);
  find_poisoned_rows<C>(tile, warpgroup, out, factor, bad);
  store_out<C>(params, shared, tile, warpgroup, out);
  repair_rows<C>(params, tile, warpgroup, bad);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
