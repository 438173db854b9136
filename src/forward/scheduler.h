// Which tile comes when, and what a tile is: its sequence, its rows, the key blocks that it visits. One thread decides.
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

FLASH3_DEVICE Band band_of(const Params& params, int seqlen_q, int seqlen_kv) {
  return core::narrow(
      core::make_band(params.window_left, params.window_right, params.bottom_right, seqlen_q, seqlen_kv));
}

// Rows [position, position + count) of a sequence, as far as they exist.
FLASH3_DEVICE Range rows_from(int position, int count, int seqlen_q) {
  const int end = position + count;
  return {position, end < seqlen_q ? end : seqlen_q};
}

// Fills in a tile. False if it is past its sequence's end: nothing to do.
template <class C>
FLASH3_DEVICE bool make_tile(const Params& params, const Place& place, Tile tile) {
  const int b = place.batch;
  const int positions = C::block_q / params.group;
  const int position = place.row_block * positions;
  int q_batch = b, q_row = 0, seqlen_q = params.seqlen_q;
  if (params.cu_seqlens_q != nullptr) {
    q_batch = 0;
    q_row = load_global_constant(params.cu_seqlens_q + b);
    seqlen_q = load_global_constant(params.cu_seqlens_q + b + 1) - q_row;
  }
  if (params.seqused_q != nullptr) seqlen_q = load_global_constant(params.seqused_q + b);
  if (position >= seqlen_q) return false;
  tile.set(tile_valid, 1);
  tile.set(tile_head, place.head);
  tile.set(tile_position, position);
  tile.set(tile_q_batch, q_batch);
  tile.set(tile_q_row, q_row);
  tile.set(tile_seqlen_q, seqlen_q);

  int kv_batch = b, kv_row = 0, seqlen_kv = params.seqlen_kv;
  if (params.cu_seqlens_k != nullptr) {
    kv_batch = 0;
    kv_row = load_global_constant(params.cu_seqlens_k + b);
    seqlen_kv = load_global_constant(params.cu_seqlens_k + b + 1) - kv_row;
  }
  if (params.seqused_k != nullptr) seqlen_kv = load_global_constant(params.seqused_k + b);
  tile.set(tile_kv_batch, kv_batch);
  tile.set(tile_kv_row, kv_row);
  tile.set(tile_seqlen_kv, seqlen_kv);

  const Band band = band_of(params, seqlen_q, seqlen_kv);
  const Range rows = rows_from(position, positions, seqlen_q);
  const core::BasicTileRange<int> blocks = core::key_tiles(band, rows, seqlen_kv, C::block_kv);
  // A tile that sees no key visits one block, masked from end to end: output 0 needs no path of its own.
  const bool none = blocks.begin >= blocks.end;
  tile.set(tile_block_begin, none ? 0 : blocks.begin);
  tile.set(tile_block_end, none ? 1 : blocks.end);
  FLASH3_NO_UNROLL
  for (int w = 0; w < C::warpgroups; ++w) {
    const core::BasicTileRange<int> share = core::key_tiles(
        band, rows_from(position + w * (64 / params.group), 64 / params.group, seqlen_q), seqlen_kv, C::block_kv);
    // If no row there sees a key: one masked block, any of the tile's.
    const bool idle = share.begin >= share.end;
    const int last = none ? 1 : blocks.end;
    const int at = tile_shares + w * share_fields;
    tile.set(at + share_block_begin, idle ? last - 1 : share.begin);
    tile.set(at + share_full_begin, idle ? last : share.full_begin);
    tile.set(at + share_full_end, idle ? last : share.full_end);
    tile.set(at + share_block_end, idle ? last : share.end);
  }
  const Range seen = core::keys_seen_by_any(band, {0, seqlen_q}, seqlen_kv);
  tile.set(tile_visible_begin, seen.begin);
  tile.set(tile_visible_end, seen.end);
  return true;
}

// The scheduler's whole life, in one thread. Which block takes a tile depends on the moment; what a tile's result is
// does not. A tile is taken as late as its keys can still follow the last tile's without a gap: who took tiles in
// advance would sit on them while other blocks run dry.
template <class C>
FLASH3_DEVICE void schedule(const Params& params, Shared<C>& shared) {
  RingPosition<work_stages> at;
  RingPosition<1> wanted;
  wait_empty(shared.work_ring, at);
  FLASH3_NO_UNROLL
  for (int index = block_x(); index < params.tiles; index = grid_x() + atomic_add_global(&params.counter->next, 1)) {
    const Place place = place_of(index, params.row_blocks, params.heads, params.heads_together, params.longest_first);
    if (!make_tile<C>(params, place, shared.tile(at))) continue;
    mbarrier_arrive(shared.work_ring.full[at.stage]);
    at.advance();
    wait_empty(shared.work_ring, at);
    mbarrier_wait_parity(shared.next_wanted, wanted.parity);
    wanted.advance();
  }
  shared.tile(at).set(tile_valid, 0);
  mbarrier_arrive(shared.work_ring.full[at.stage]);
  if (atomic_add_global(&params.counter->finished, 1) == grid_x() - 1) {
    store_global(&params.counter->next, 0);
    store_global(&params.counter->finished, 0);
  }
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
