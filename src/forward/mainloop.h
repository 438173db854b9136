// The consumers' loop over key blocks: S = Q K^T of the next block and O += P V of this one are in flight together, and
// the exponentials of the next block run beside the latter.
#pragma once

#include "forward/scheduler.h"
#include "forward/softmax.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// Once per warp: a stage is free when all warps have said so.
template <int stages>
FLASH3_DEVICE void release_by_warp(Ring<stages>& ring, const RingPosition<stages>& at) {
  sync_warp();
  if (lane_index() == 0) release(ring, at);
}
template <int stages>
FLASH3_DEVICE void release_and_advance(Ring<stages>& ring, RingPosition<stages>& at) {
  release_by_warp(ring, at);
  at.advance();
}

// Where a consumer warp stands in the rings of keys and values.
template <class C>
struct Consumer {
  int warpgroup;
  RingPosition<C::stages> k_at, v_at;
};

// Stages that other warpgroups of the tile need and this one does not. It waits for them all the same: a warp that ran
// ahead of a ring by more than a round would take one phase for another.
template <int stages>
FLASH3_DEVICE void skip_stages(Ring<stages>& ring, RingPosition<stages>& at, int count) {
  FLASH3_NO_UNROLL
  for (int i = 0; i < count; ++i) {
    wait_full(ring, at);
    release_and_advance(ring, at);
  }
}

// The same for keys and values, in the order in which the other warpgroups need them: who kept a stage of one while
// waiting for the other would stop them, and so itself.
template <class C>
FLASH3_DEVICE void skip_blocks(Shared<C>& shared, Consumer<C>& self, int count) {
  FLASH3_NO_UNROLL
  for (int i = 0; i < count; ++i) {
    skip_stages(shared.k_ring, self.k_at, 1);
    skip_stages(shared.v_ring, self.v_at, 1);
  }
}

// Of the warpgroup's first row in its sequence.
FLASH3_DEVICE int position_of_share(const Params& params, const Tile& tile, int warpgroup) {
  return tile[tile_position] + warpgroup * (64 / params.group);
}

// The keys that this thread's two rows see. Masked blocks are few: worked out anew in each.
FLASH3_DEVICE Visible visible_keys(const Params& params, const Tile& tile, int warpgroup) {
  const int seqlen_q = tile[tile_seqlen_q], seqlen_kv = tile[tile_seqlen_kv];
  const Band band = band_of(params, seqlen_q, seqlen_kv);
  const int first = position_of_share(params, tile, warpgroup);
  Visible visible;
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int position = first + row_of(half, thread_index() % 128) / params.group;
    const Range keys = core::keys_seen_by_any(band, rows_from(position, 1, seqlen_q), seqlen_kv);
    visible.key_begin[half] = keys.begin;
    visible.key_end[half] = keys.end;
  }
  return visible;
}

// From raw scores to probabilities, up to rounding. Returns whether the output must be multiplied by `factor`.
template <class C>
FLASH3_DEVICE bool softmax_step(const Params& params, const Tile& tile, int warpgroup, int block,
                                Accumulator<C::block_kv>& scores, Rows& rows, float (&factor)[2]) {
  if (params.transform != Transform::none) transform_scores(params, scores);
  if (block < tile.share(warpgroup, share_full_begin) || block >= tile.share(warpgroup, share_full_end)) {
    mask_scores(scores, visible_keys(params, tile, warpgroup), block * C::block_kv);
  }
  const bool moved = move_references(params, scores, rows, factor);
  exponentiate(params, scores, rows);
  return moved;
}

// Blocks of the tile that this warpgroup leaves out before its first and after its last.
FLASH3_DEVICE int blocks_before(const Tile& tile, int warpgroup) {
  return tile[tile_block_end] - tile.share(warpgroup, share_block_end);
}
FLASH3_DEVICE int blocks_after(const Tile& tile, int warpgroup) {
  return tile.share(warpgroup, share_block_begin) - tile[tile_block_begin];
}

// S = Q K^T of the next block, in flight.
template <class C>
FLASH3_DEVICE void issue_scores(Shared<C>& shared, const Consumer<C>& self, int q_stage,
                                Accumulator<C::block_kv>& scores) {
  wait_full(shared.k_ring, self.k_at);
  wgmma_fence();
  multiply_abt(scores, shared.q[q_stage][self.warpgroup], 0, shared.k[self.k_at.stage], 0, false);
  wgmma_commit_group();
}

// O = P V, or O += P V, of the next block, in flight.
template <class C>
FLASH3_DEVICE void issue_output(Shared<C>& shared, const Consumer<C>& self,
                                Operand<typename C::Element, C::block_kv>& probabilities,
                                Accumulator<C::head_dim_v>& out, bool accumulate) {
  wait_full(shared.v_ring, self.v_at);
  wgmma_fence();
  multiply_ab(out, probabilities, shared.v[self.v_at.stage], 0, 0, accumulate);
  wgmma_commit_group();
}

// A tile's first block: nothing of this warpgroup is in flight beside it.
template <class C>
FLASH3_DEVICE void begin_tile(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                              const RingPosition<C::q_stages>& q_at, Rows& rows,
                              Operand<typename C::Element, C::block_kv>& probabilities) {
  Accumulator<C::block_kv> scores;
  float factor[2];
  skip_blocks(shared, self, blocks_before(tile, self.warpgroup));
  wait_full(shared.q_ring, q_at);
  issue_scores(shared, self, q_at.stage, scores);
  wgmma_wait_group<0>(scores);
  release_and_advance(shared.k_ring, self.k_at);
  softmax_step<C>(params, tile, self.warpgroup, tile.share(self.warpgroup, share_block_end) - 1, scores, rows, factor);
  repack(scores, probabilities);
}

// All further blocks: S of the next and O += P V of this one are in flight together, and the exponentials of the next
// run beside the latter. Leaves the last block's P to be multiplied. Returns whether O has begun.
template <class C>
FLASH3_DEVICE bool visit_blocks(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                                const RingPosition<C::q_stages>& q_at, Rows& rows,
                                Operand<typename C::Element, C::block_kv>& probabilities,
                                Accumulator<C::head_dim_v>& out) {
  Accumulator<C::block_kv> scores;
  float factor[2];
  bool accumulate = false;
  int block = tile.share(self.warpgroup, share_block_end) - 1;
  FLASH3_NO_UNROLL
  while (--block >= tile.share(self.warpgroup, share_block_begin)) {
    issue_scores(shared, self, q_at.stage, scores);
    issue_output(shared, self, probabilities, out, accumulate);
    accumulate = true;
    wgmma_wait_group<1>(scores);
    release_and_advance(shared.k_ring, self.k_at);
    const bool moved = softmax_step<C>(params, tile, self.warpgroup, block, scores, rows, factor);
    wgmma_wait_group<0>(out, probabilities);
    release_and_advance(shared.v_ring, self.v_at);
    if (moved) scale_rows(out, factor);
    repack(scores, probabilities);
  }
  return accumulate;
}

// The last block's O += P V, alone.
template <class C>
FLASH3_DEVICE void end_tile(Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                            Operand<typename C::Element, C::block_kv>& probabilities, Accumulator<C::head_dim_v>& out,
                            bool accumulate) {
  issue_output(shared, self, probabilities, out, accumulate);
  wgmma_wait_group<0>(out, probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  skip_blocks(shared, self, blocks_after(tile, self.warpgroup));
}

// Whether the end of this tile and the beginning of the next may overlap: the warpgroup then holds a stage of V while
// it waits for the next tile's name and for its keys, and others must be able to get on meanwhile. Blocks that this
// warpgroup leaves out are what could make them wait for each other.
template <class C>
FLASH3_DEVICE bool may_overlap(Shared<C>& shared, const Tile& tile, const Tile& next,
                               const RingPosition<work_stages>& next_at, int warpgroup) {
  if (blocks_after(tile, warpgroup) != 0) return false;
  wait_full(shared.work_ring, next_at);
  return next[tile_valid] && blocks_before(next, warpgroup) <= C::stages;
}

// The last block's O += P V of one tile beside the first block's scores and exponentials of the next: the tensor cores
// do not run dry between tiles.
template <class C>
FLASH3_DEVICE void end_and_begin_tile(const Params& params, Shared<C>& shared, const Tile& next, Consumer<C>& self,
                                      const RingPosition<C::q_stages>& next_q_at, Rows& next_rows,
                                      Operand<typename C::Element, C::block_kv>& probabilities,
                                      Accumulator<C::head_dim_v>& out, bool accumulate) {
  Accumulator<C::block_kv> scores;
  float factor[2];
  const int before = blocks_before(next, self.warpgroup);
  skip_stages(shared.k_ring, self.k_at, before);
  wait_full(shared.q_ring, next_q_at);
  issue_scores(shared, self, next_q_at.stage, scores);
  issue_output(shared, self, probabilities, out, accumulate);
  wgmma_wait_group<1>(scores);
  release_and_advance(shared.k_ring, self.k_at);
  softmax_step<C>(params, next, self.warpgroup, next.share(self.warpgroup, share_block_end) - 1, scores, next_rows,
                  factor);
  wgmma_wait_group<0>(out, probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  skip_stages(shared.v_ring, self.v_at, before);
  repack(scores, probabilities);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
