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

// What a consumer warp knows: where it stands in the rings, and of its tile how far it has come.
template <class C>
struct Consumer {
  int warpgroup;
  RingPosition<C::k_stages> k_at;
  RingPosition<C::v_stages> v_at;
  // Whether the next stage was full when this was last asked, in good time: asking takes as long as many products.
  bool k_full = false, v_full = false;

  int block = 0;                                            // the one whose scores come next or came last
  int last_block;                                           // of the tile's share, which is visited downwards
  int full_begin, full_end;                                 // its blocks that need no mask
  Operand<typename C::Element, C::block_kv> probabilities;  // of the block before, not yet multiplied by V
  Rows rows;
  bool settled = false;     // every row's reference is a maximum over a block that needed no mask
  bool accumulate = false;  // whether O holds an earlier block's product

  // Before a tile's first block.
  FLASH3_DEVICE void take(const Tile& tile) {
    block = tile.share(warpgroup, share_block_end) - 1;
    last_block = tile.share(warpgroup, share_block_begin);
    full_begin = tile.share(warpgroup, share_full_begin);
    full_end = tile.share(warpgroup, share_full_end);
    rows = Rows{};
    settled = accumulate = false;
  }
  FLASH3_DEVICE bool is_last() const { return block == last_block; }
  FLASH3_DEVICE bool is_masked() const { return block < full_begin || block >= full_end; }
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
    self.k_full = self.v_full = false;
  }
}

// Where row `row` of a tile stands: so many positions after the tile's first, and which of the packed heads it is of.
FLASH3_DEVICE int position_in_tile(const Params& params, int row) { return row >> params.group_shift; }
FLASH3_DEVICE int head_in_group(const Params& params, int row) { return row & ((1 << params.group_shift) - 1); }

// The keys that this thread's two rows see. Masked blocks are few: worked out anew in each. Rows beyond the sequence's
// end see some too; nobody looks at what comes of them.
FLASH3_DEVICE Visible visible_keys(const Params& params, const Tile& tile, int warpgroup) {
  const int seqlen_kv = tile[tile_seqlen_kv];
  const Band band = band_of(tile);
  const int first = tile[tile_position] + warpgroup * (64 >> params.group_shift);
  Visible visible;
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int position = first + position_in_tile(params, row_of(half, opaque(thread_index()) % 128));
    const int end = position + band.hi + 1;
    visible.key_begin[half] = position + band.lo;
    visible.key_end[half] = end < seqlen_kv ? end : seqlen_kv;
  }
  return visible;
}

// From raw scores to probabilities, up to rounding, by the rows' maxima: for blocks with a mask, and until every row
// has a reference. Returns whether the output must be multiplied by block.factor.
template <class C>
FLASH3_DEVICE bool softmax_by_maximum(const Params& params, const Tile& tile, Consumer<C>& self,
                                      Accumulator<C::block_kv>& scores, BlockSums& block) {
  if (params.transform != Transform::none) transform_scores(params, scores);
  if (self.is_masked()) {
    mask_scores(scores, visible_keys(params, tile, self.warpgroup), self.block * C::block_kv);
  } else {
    self.settled = C::tile.judges_by_sums();
  }
  const bool moved = move_references(params, scores, C::tile.judges_by_sums() ? 0 : growth, self.rows, block);
  exponentiate<C::tile.row_by_row()>(params, scores, self.rows, block);
  self.rows.sum[0] += block.sum[0];
  self.rows.sum[1] += block.sum[1];
  return moved;
}

// The same by the sums of the probabilities, once the rows have settled: no maximum is looked for.
template <class C>
FLASH3_DEVICE bool softmax_by_sum(const Params& params, Consumer<C>& self, Accumulator<C::block_kv>& scores,
                                  BlockSums& block) {
  if (params.transform != Transform::none) transform_scores(params, scores);
  exponentiate<C::tile.row_by_row()>(params, scores, self.rows, block);
  const bool moved = vote_any(block.sum[0] > most_sum || block.sum[1] > most_sum);
  if (moved) lower_probabilities(scores, self.rows, block);
  self.rows.sum[0] += block.sum[0];
  self.rows.sum[1] += block.sum[1];
  return moved;
}

// S = Q K^T of the next block, in flight.
template <class C>
FLASH3_DEVICE void issue_scores(Shared<C>& shared, const Consumer<C>& self, int q_stage,
                                Accumulator<C::block_kv>& scores) {
  wait_full_unless(self.k_full, shared.k_ring, self.k_at);
  wgmma_fence();
  multiply_abt(scores, shared.q[q_stage][self.warpgroup], 0, shared.k[self.k_at.stage], 0, false);
  wgmma_commit_group();
}

// O = P V, or O += P V, of the next block, in flight.
template <class C>
FLASH3_DEVICE void issue_output(Shared<C>& shared, Consumer<C>& self, Accumulator<C::head_dim_v>& out) {
  wait_full_unless(self.v_full, shared.v_ring, self.v_at);
  wgmma_fence();
  multiply_ab(out, self.probabilities, shared.v[self.v_at.stage], 0, 0, self.accumulate);
  wgmma_commit_group();
  self.accumulate = true;
}

// After the scores of block self.block: its stage of K is free, and with the last block's, Q.
template <class C>
FLASH3_DEVICE void release_operands(Shared<C>& shared, Consumer<C>& self, const RingPosition<C::q_stages>& q_at) {
  release_and_advance(shared.k_ring, self.k_at);
  self.k_full = test_full(shared.k_ring, self.k_at);
  if (self.is_last()) release_by_warp(shared.q_ring, q_at);
}

// A tile's first block, its scores in flight: to its P.
template <class C>
FLASH3_DEVICE void take_first_step(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                                   const RingPosition<C::q_stages>& q_at, Accumulator<C::block_kv>& scores) {
  BlockSums block;
  wgmma_wait_group<0>(scores);
  release_operands(shared, self, q_at);
  self.v_full = test_full(shared.v_ring, self.v_at);
  softmax_by_maximum<C>(params, tile, self, scores, block);
  repack(scores, self.probabilities);
}

// S = Q K^T of a tile's first block, in flight. The warpgroup holds no stage of a ring while it waits for the tile's.
template <class C>
FLASH3_DEVICE void start_tile(Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                              const RingPosition<C::q_stages>& q_at, bool q_full, Accumulator<C::block_kv>& scores) {
  self.take(tile);
  skip_blocks(shared, self, tile.share(self.warpgroup, share_before));
  wait_full_unless(q_full, shared.q_ring, q_at);
  issue_scores(shared, self, q_at.stage, scores);
}

template <class C>
FLASH3_DEVICE void begin_tile(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                              const RingPosition<C::q_stages>& q_at, bool q_full) {
  Accumulator<C::block_kv> scores;
  start_tile(shared, tile, self, q_at, q_full, scores);
  take_first_step(params, shared, tile, self, q_at, scores);
}

// From the P of one block to that of the next: O += P V and S = Q K^T in flight together, and the exponentials of the
// latter beside the former.
template <class C, bool by_sum>
FLASH3_DEVICE void take_step(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                             const RingPosition<C::q_stages>& q_at, Accumulator<C::head_dim_v>& out) {
  Accumulator<C::block_kv> scores;
  BlockSums block;
  issue_scores(shared, self, q_at.stage, scores);
  issue_output(shared, self, out);
  wgmma_wait_group<1>(scores);
  release_operands(shared, self, q_at);
  self.v_full = test_full(shared.v_ring, self.v_at.next());
  bool moved;
  if constexpr (by_sum) {
    moved = softmax_by_sum(params, self, scores, block);
  } else {
    moved = softmax_by_maximum<C>(params, tile, self, scores, block);
  }
  wgmma_wait_group<0>(out, self.probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  if (moved) scale_rows(out, block.factor);
  repack(scores, self.probabilities);
}

// All blocks of a tile after its first. Those that need neither a mask nor a maximum have a loop of their own.
template <class C>
FLASH3_DEVICE void take_steps(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                              const RingPosition<C::q_stages>& q_at, Accumulator<C::head_dim_v>& out) {
  const int plain_begin = self.full_begin > self.last_block ? self.full_begin : self.last_block;
  FLASH3_NO_UNROLL
  while (!self.is_last()) {
    --self.block;
    if (C::tile.judges_by_sums() && self.settled && !self.is_masked()) {
      FLASH3_NO_UNROLL
      while (true) {
        take_step<C, true>(params, shared, tile, self, q_at, out);
        if (self.block == plain_begin) break;
        --self.block;
      }
    } else {
      take_step<C, false>(params, shared, tile, self, q_at, out);
    }
  }
}

// Whether the next tile is named, and its queries there: asked while the last product is running.
struct NextTile {
  bool named = false, q_full = false;
};

// The last block's O += P V. Afterwards the warpgroup holds nothing of the tile but its output.
template <class C>
FLASH3_DEVICE NextTile end_tile(Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                                const RingPosition<work_stages>& next_at, const RingPosition<C::q_stages>& next_q_at,
                                Accumulator<C::head_dim_v>& out) {
  issue_output(shared, self, out);
  const NextTile next = {test_full(shared.work_ring, next_at), test_full(shared.q_ring, next_q_at)};
  self.k_full = test_full(shared.k_ring, self.k_at);
  wgmma_wait_group<0>(out, self.probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  skip_blocks(shared, self, tile.share(self.warpgroup, share_after));
  return next;
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
