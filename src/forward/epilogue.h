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
  const int existing = rows_existing(params, tile, warpgroup), row = row_of(0, opaque(thread_index()) % 128);
  float total[2] = {rows.sum[0], rows.sum[1]}, lse[2];
  row_sums(total);
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    const ClosedRow closed =
        close_row(params, tile, warpgroup * 64 + row + 8 * half, rows.reference[half], total[half]);
    factor[half] = closed.factor;
    lse[half] = closed.lse * ln_2;
    bad[half] = has_overflowed(rows.reference[half], total[half]);
  }
  if (params.lse == nullptr) return;
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    float* const target = lse_of_row(params, tile, warpgroup * 64 + row + 8 * half);
    if (opaque(lane_index()) % 4 == 0 && row + 8 * half < existing) store_global(target, lse[half]);
  }
}

// A warp's 16 rows of some columns of O, from shared memory, where TMA cannot: rows of which another sequence has the
// last, or which end within 16 bytes.
template <class C, class Place>
FLASH3_DEVICE void store_rows(const Params& params, const Tile& tile, int warpgroup, const Place& place, int first_row,
                              int begin, int existing) {
  using T = typename C::Element;
  constexpr int row_chunks = Place::columns / 8;
  const int lane = opaque(lane_index()), column = lane % row_chunks * 8;
  const int left = params.head_dim_v - begin - column;
  FLASH3_NO_UNROLL
  for (int row = first_row + lane / row_chunks; row < first_row + 16 && row < existing; row += 32 / row_chunks) {
    T* const target = out_row<T>(params, tile, warpgroup * 64 + row) + begin + column;
    if (left >= 8) {
      store_global_16(target, load_shared_16(place.address(row, column)));
      continue;
    }
    FLASH3_NO_UNROLL
    for (int e = 0; e < left; ++e) store_global(target + e, T{load_shared_2(place.address(row, column + e))});
  }
}

// Before a place is written again, and at the end, since shared memory must outlive what is on its way.
FLASH3_DEVICE void wait_until_out_is_taken() {
  if (lane_index() == 0) bulk_wait_group_read<0>();
  sync_warp();
}

// O, rounded, to global memory. A warp passes its 16 rows through places of its own in shared memory, some columns at
// a time, from where TMA takes them; no warp waits for another.
template <class C>
FLASH3_DEVICE void store_out(const Params& params, Shared<C>& shared, const Tile& tile, int warpgroup,
                             const Accumulator<C::head_dim_v>& out) {
  using T = typename C::Element;
  using OutTile = SharedTile<T, 64, C::tile.out_columns()>;
  constexpr int columns = OutTile::columns, places = C::tile.out_places();
  const int lane = opaque(lane_index()), first_row = opaque(thread_index()) % 128 / 32 * 16;
  const int tile_row = warpgroup * 64 + first_row, existing = rows_existing(params, tile, warpgroup);
  const bool by_tma = params.out_by_tma && (params.out_ends_with_tensor || first_row + 16 <= existing);
  const int row = tile[tile_q_row] + tile[tile_position] + position_in_tile(params, tile_row);
  const int head = tile[tile_head], batch = tile[tile_q_batch];
  FLASH3_UNROLL
  for (int round = 0; round < C::head_dim_v; round += columns * places) {
    wait_until_out_is_taken();
    FLASH3_UNROLL
    for (int begin = round; begin < round + columns * places && begin < C::head_dim_v; begin += columns) {
      const OutTile& place = shared.out[warpgroup][(begin - round) / columns];
      const SharedAddress put = place.address(first_row + lane % 16, lane / 16 * 8);
      FLASH3_UNROLL
      for (int i = begin / 16; i < (begin + columns) / 16; ++i) {
        const unsigned words[4] = {pack<T>(out[8 * i], out[8 * i + 1]), pack<T>(out[8 * i + 2], out[8 * i + 3]),
                                   pack<T>(out[8 * i + 4], out[8 * i + 5]), pack<T>(out[8 * i + 6], out[8 * i + 7])};
        stmatrix_x4(OutTile::right_of(put, i * 16 - begin), words);
      }
    }
    fence_proxy_async();
    sync_warp();
    FLASH3_UNROLL
    for (int begin = round; begin < round + columns * places && begin < C::head_dim_v; begin += columns) {
      const OutTile& place = shared.out[warpgroup][(begin - round) / columns];
      if (!by_tma) {
        store_rows<C>(params, tile, warpgroup, place, first_row, begin, existing);
      } else if (lane_index() == 0) {
        cp_async_bulk_tensor_store(params.out, {begin, head_in_group(params, tile_row), row, head, batch},
                                   OutTile::below(place.address(), first_row));
        bulk_commit_group();
      }
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
