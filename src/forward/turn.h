// From a tile to the next: the last O += P V, the way of O to memory, and the next tile's first scores.
#pragma once

#include "forward/epilogue.h"
#include "forward/mainloop.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// Whether the next tile's first scores may be computed while this tile's output is on its way: the warpgroup then waits
// for the next tile's name, queries and keys before it has let go of this tile's last values. Blocks that it leaves out
// could make others wait for it meanwhile, on which these depend.
template <class C>
FLASH3_DEVICE bool may_go_ahead(Shared<C>& shared, const Tile& tile, const RingPosition<work_stages>& next_at,
                                int warpgroup) {
  if (C::q_stages == 1 || blocks_after(tile, warpgroup) != 0) return false;
  wait_full(shared.work_ring, next_at);
  const Tile next = shared.tile(next_at);
  return next[tile_valid] && blocks_before(next, warpgroup) == 0;
}

// `q_at`: of the next tile. The rings are left at its first block, whose P is there.
template <class C>
FLASH3_DEVICE void go_ahead(const Params& params, Shared<C>& shared, const Tile& tile, const Tile& next,
                            const RingPosition<work_stages>& work_at, Consumer<C>& self,
                            const RingPosition<C::q_stages>& q_at, Accumulator<C::head_dim_v>& out) {
  Accumulator<C::block_kv> scores;
  issue_output(shared, self, out);
  const Rows rows = self.rows;
  self.take(next);
  wait_full(shared.q_ring, q_at);
  issue_scores(shared, self, q_at.stage, scores);
  wgmma_wait_group<1>(out, self.probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  finish_tile<C>(params, shared, tile, self.warpgroup, rows, out);
  release_by_warp(shared.work_ring, work_at);
  take_first_step(params, shared, next, self, q_at, scores);
}

// The last block's O += P V, alone, and O's way.
template <class C>
FLASH3_DEVICE void end_tile(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                            Accumulator<C::head_dim_v>& out) {
  issue_output(shared, self, out);
  wgmma_wait_group<0>(out, self.probabilities);
  release_and_advance(shared.v_ring, self.v_at);
  skip_blocks(shared, self, blocks_after(tile, self.warpgroup));
  finish_tile<C>(params, shared, tile, self.warpgroup, self.rows, out);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
