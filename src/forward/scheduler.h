// Which tile comes when, and what a tile is: its sequence, its rows, the key blocks that it visits. One warp decides.
#pragma once

#include "core/mask.h"
#include "forward/config.h"
#include "forward/params.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

struct Place {
  int row_block, head, batch;
};

// Tile `index` of the launch. Heads are taken in groups whose keys and values stay in L2 together; within a group the
// tiles of one row block follow each other, longest first where lengths differ, else the tiles of one head.
FLASH3_HOST_DEVICE constexpr Place place_of(int index, int row_blocks, int heads, int heads_together,
                                            bool longest_first) {
  const int group_tiles = heads_together * row_blocks;
  const int group = index / group_tiles, in_group = index - group * group_tiles;
  int row_block = 0, head = 0;
  if (longest_first) {
    row_block = in_group / heads_together;
    head = in_group - row_block * heads_together;
    row_block = row_blocks - 1 - row_block;
  } else {
    head = in_group / row_blocks;
    row_block = in_group - head * row_blocks;
  }
  head += group * heads_together;
  return {row_block, head % heads, head / heads};
}

using Band = core::BasicBand<int>;
using Range = core::BasicRange<int>;

FLASH3_DEVICE Band band_of(const Tile& tile) { return {tile[tile_band_lo], tile[tile_band_hi]}; }

// Rows [position, position + count) of a sequence, as far as they exist.
FLASH3_DEVICE Range rows_from(int position, int count, int seqlen_q) {
  const int end = position + count;
  return {position, end < seqlen_q ? end : seqlen_q};
}

FLASH3_DEVICE int seqlen_q_of(const Params& params, int batch) {
  if (params.seqused_q != nullptr) return load_global_constant(params.seqused_q + batch);
  if (params.cu_seqlens_q == nullptr) return params.seqlen_q;
  return load_global_constant(params.cu_seqlens_q + batch + 1) - load_global_constant(params.cu_seqlens_q + batch);
}

// A warp's way through sequences of unequal lengths, 32 at a time: first those whose count of row blocks has the most
// binary digits, and so on, so that long ones do not come last. Tiles are counted as they come, which is the same in
// every block of the launch; whoever asks for growing indices walks it once.
FLASH3_DEVICE void begin_walk(const Params& params, WalkArray& walk) {
  int digits = 0;
  while (params.row_blocks >> digits > 0) ++digits;
  if (lane_index() == 0) {
    walk.store(walk_digits, digits);
    walk.store(walk_batch, 0);
    walk.store(walk_counted, 0);
  }
  sync_warp();
}

// Every lane calls it. True in the one lane whose sequence has tile `index`, in none if there is no such tile: there,
// `index` becomes the tile's among those of its sequence.
FLASH3_DEVICE bool find_tile(const Params& params, WalkArray& walk, int positions, int& index, int& row_blocks,
                             int& batch) {
  int digits = walk.load(walk_digits), first = walk.load(walk_batch);
  index -= walk.load(walk_counted);
  sync_warp();
  FLASH3_NO_UNROLL
  while (digits > 0) {
    batch = first + lane_index();
    row_blocks = 0;
    if (batch < params.batch) row_blocks = (seqlen_q_of(params, batch) + positions - 1) / positions;
    const int tiles = row_blocks >> digits == 0 && row_blocks >> (digits - 1) > 0 ? row_blocks * params.heads : 0;
    int end = tiles;  // of this lane's tiles among the warp's
    FLASH3_UNROLL
    for (int distance = 1; distance < 32; distance *= 2) {
      const int before = shuffle_up(end, distance);
      if (lane_index() >= distance) end += before;
    }
    const int all = shuffle(end, 31);
    if (index < all) {
      index -= end - tiles;
      return index >= 0 && index < tiles;
    }
    index -= all;
    first += 32;
    if (first >= params.batch) {
      first = 0;
      --digits;
    }
    if (lane_index() == 0) {
      walk.store(walk_digits, digits);
      walk.store(walk_batch, first);
      walk.store(walk_counted, walk.load(walk_counted) + all);
    }
  }
  return false;
}

// Where a tile's tensors are.
FLASH3_DEVICE void place_tile(const Params& params, const Place& place, int positions, Tile tile) {
  const int b = place.batch;
  tile.set(tile_valid, 1);
  tile.set(tile_head, place.head);
  tile.set(tile_kv_head, place.head / params.heads_per_key);
  tile.set(tile_position, place.row_block * positions);
  tile.set(tile_seqlen_q, seqlen_q_of(params, b));
  const bool q_packed = params.cu_seqlens_q != nullptr;
  tile.set(tile_q_batch, q_packed ? 0 : b);
  const int q_row = q_packed ? load_global_constant(params.cu_seqlens_q + b) : 0;
  tile.set(tile_q_row, q_row);
  const long long q_batch = q_packed ? 0 : b, first_row = q_row + place.row_block * positions;
  const long long first_head = static_cast<long long>(place.head) << params.group_shift;
  const Address<void*>& out = params.out_address;
  tile.set_wide(tile_out, q_batch * out.batch_stride + first_row * out.row_stride + first_head * out.head_stride);
  tile.set_wide(tile_lse, q_batch * params.lse_batch_stride + first_row + first_head * params.lse_head_stride);
  int kv_row = 0, seqlen_kv = params.seqlen_kv;
  const bool kv_packed = params.cu_seqlens_k != nullptr;
  if (kv_packed) {
    kv_row = load_global_constant(params.cu_seqlens_k + b);
    seqlen_kv = load_global_constant(params.cu_seqlens_k + b + 1) - kv_row;
  }
  if (params.seqused_k != nullptr) seqlen_kv = load_global_constant(params.seqused_k + b);
  tile.set(tile_kv_batch, kv_packed ? 0 : b);
  tile.set(tile_kv_row, kv_row);
  tile.set(tile_seqlen_kv, seqlen_kv);
}

// Which blocks of keys a tile that has its place visits, and each of its warpgroups.
template <class C>
FLASH3_DEVICE void choose_blocks(const Params& params, Tile tile) {
  const int seqlen_q = tile[tile_seqlen_q], seqlen_kv = tile[tile_seqlen_kv];
  const int share_rows = 64 >> params.group_shift, position = tile[tile_position];
  const Band band =
      core::narrow(core::make_band(params.window_left, params.window_right, params.bottom_right, seqlen_q, seqlen_kv));
  tile.set(tile_band_lo, band.lo);
  tile.set(tile_band_hi, band.hi);
  const core::BasicTileRange<int> blocks =
      core::key_tiles(band, rows_from(position, C::warpgroups * share_rows, seqlen_q), seqlen_kv, C::block_kv);
  // A tile that sees no key visits one block, masked from end to end: output 0 needs no path of its own.
  const bool none = blocks.begin >= blocks.end;
  const int last = none ? 1 : blocks.end;
  tile.set(tile_block_begin, none ? 0 : blocks.begin);
  tile.set(tile_block_end, last);
  FLASH3_NO_UNROLL
  for (int w = 0; w < C::warpgroups; ++w) {
    const core::BasicTileRange<int> share =
        core::key_tiles(band, rows_from(position + w * share_rows, share_rows, seqlen_q), seqlen_kv, C::block_kv);
    // If no row there sees a key: one masked block, any of the tile's.
    const bool idle = share.begin >= share.end;
    const int at = tile_shares + w * share_fields;
    tile.set(at + share_block_begin, idle ? last - 1 : share.begin);
    tile.set(at + share_full_begin, idle ? last : share.full_begin);
    tile.set(at + share_full_end, idle ? last : share.full_end);
    tile.set(at + share_block_end, idle ? last : share.end);
    tile.set(at + share_before, idle ? 0 : last - share.end);
    tile.set(at + share_after, (idle ? last - 1 : share.begin) - (none ? 0 : blocks.begin));
    tile.set(at + share_masked, idle || share.begin != share.full_begin || share.end != share.full_end);
  }
  const Range seen = core::keys_seen_by_any(band, {0, seqlen_q}, seqlen_kv);
  tile.set(tile_visible_begin, seen.begin);
  tile.set(tile_visible_end, seen.end);
}

// Names tile `index` of the launch; false if there is none. Every lane of the warp calls it; one of them, to which it
// says so, has written all.
template <class C>
FLASH3_DEVICE bool name_tile(const Params& params, Shared<C>& shared, int index, Tile tile, bool& mine) {
  mine = lane_index() == 0;
  int row_blocks = params.row_blocks, batch = 0;
  if (params.unequal_lengths) {
    mine = find_tile(params, shared.walk, C::block_q >> params.group_shift, index, row_blocks, batch);
    if (!vote_any(mine)) return false;
  } else if (index >= params.tiles) {
    return false;
  }
  if (mine) {
    Place place = place_of(index, row_blocks, params.heads, params.heads_together, params.longest_first);
    place.batch += batch;
    place_tile(params, place, C::block_q >> params.group_shift, tile);
    choose_blocks<C>(params, tile);
  }
  sync_warp();  // before the walk is read again
  return true;
}

FLASH3_DEVICE int take_index(const Params& params) { return grid_x() + atomic_add_global(&params.counter->next, 1); }

// In one thread, after the last tile: the last block to say so sets the counter back.
FLASH3_DEVICE void finish_counting(const Params& params) {
  if (atomic_add_global(&params.counter->finished, 1) == grid_x() - 1) {
    store_global(&params.counter->next, 0);
    store_global(&params.counter->finished, 0);
  }
}

// The scheduler's whole life, in one warp. Which block takes a tile depends on the moment; what a tile's result is does
// not. A tile is taken as late as its keys can still follow the last tile's without a gap: who took tiles in advance
// would sit on them while other blocks run dry.
template <class C>
FLASH3_DEVICE void schedule(const Params& params, Shared<C>& shared) {
  if (params.unequal_lengths) begin_walk(params, shared.walk);
  int index = block_x();
  unsigned count = 0;
  for (;; ++count) {
    const RingPosition<work_stages> at = position_of<work_stages>(count);
    wait_empty(shared.work_ring, at);
    bool mine;
    if (!name_tile(params, shared, index, shared.tile(at), mine)) break;
    if (mine) mbarrier_arrive(shared.work_ring.full[at.stage]);
    if (lane_index() == 0) {
      mbarrier_wait_parity(shared.next_wanted, count % 2);
      index = take_index(params);
    }
    index = shuffle(index, 0);
  }
  if (lane_index() != 0) return;
  const RingPosition<work_stages> at = position_of<work_stages>(count);
  shared.tile(at).set(tile_valid, 0);
  mbarrier_arrive(shared.work_ring.full[at.stage]);
  finish_counting(params);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
