// A warpgroup's steps: from block to block within a tile, and from tile to tile.
#pragma once

#include "forward/epilogue.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// The last block's O += P V, alone.
template <class C>
FLASH3_DEVICE void end_tile(Shared<C>& shared, const Tile& tile, Consumer<C>& self, Accumulator<C::head_dim_v>& out) {
  issue_output(shared, self, out);
  wgmma_wait_group<0>(out, self.probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  skip_blocks(shared, self, blocks_after(tile, self.warpgroup));
}

// Whether the end of this tile and the beginning of the next may overlap: the warpgroup then holds a stage of V while
// it waits for the next tile's name and for its keys, and others must be able to get on meanwhile. Blocks that this
// warpgroup leaves out are what could make them wait for each other.
template <class C>
FLASH3_DEVICE bool may_overlap(Shared<C>& shared, const Tile& tile, const RingPosition<work_stages>& next_at,
                               int warpgroup) {
  constexpr int stages = C::k_stages < C::v_stages ? C::k_stages : C::v_stages;
  if (blocks_after(tile, warpgroup) != 0) return false;
  wait_full(shared.work_ring, next_at);
  const Tile next = shared.tile(next_at);
  return next[tile_valid] && blocks_before(next, warpgroup) <= stages;
}

// Turns to the next tile, the scores of whose first block come beside this one's last O += P V.
template <class C>
FLASH3_DEVICE void turn_to(Shared<C>& shared, const Tile& next, Consumer<C>& self,
                           const RingPosition<C::q_stages>& q_at) {
  const int before = blocks_before(next, self.warpgroup);
  if (before > 0) self.k_full = false;
  skip_stages(shared.k_ring, self.k_at, before);
  self.take(next);
  wait_full(shared.q_ring, q_at);
}

// The values of the blocks whose keys turn_to left out.
template <class C>
FLASH3_DEVICE void skip_values(Shared<C>& shared, const Tile& tile, Consumer<C>& self) {
  const int before = blocks_before(tile, self.warpgroup);
  if (before > 0) self.v_full = false;
  skip_stages(shared.v_ring, self.v_at, before);
}

// From the P of one block to that of the next: O += P V and S = Q K^T in flight together, and the exponentials of the
// latter beside the former. `turns`: the next block is the first of the next tile.
template <class C>
FLASH3_DEVICE void take_step(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                             const RingPosition<C::q_stages>& q_at, bool turns, Accumulator<C::head_dim_v>& out) {
  Accumulator<C::block_kv> scores;
  float factor[2];
  issue_scores(shared, self, q_at.stage, scores);
  issue_output(shared, self, out);
  wgmma_wait_group<1>(scores);
  release_operands(shared, self, q_at);
  self.v_full = test_full(shared.v_ring, self.v_at.next());
  const bool moved = softmax_step<C>(params, tile, self, scores, factor);
  wgmma_wait_group<0>(out, self.probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  if (moved && !turns) scale_rows(out, factor);
  repack(scores, self.probabilities);
  if (turns) skip_values(shared, tile, self);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
