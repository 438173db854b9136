// The forward kernel: a warpgroup of which one warp schedules and two threads produce, two to four consumer warpgroups.
#pragma once

#include "forward/producer.h"
#include "forward/turn.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// The tiles of a warpgroup, one after the other. In each step O += P V of one block and S = Q K^T of the next are in
// flight together, be it of the same tile or the next tile's first, so that the tensor cores do not run dry between
// tiles. One copy of a step is what the instruction cache likes; tiles of many blocks have a short loop of their own
// beside it. With one place for Q, the next tile's is on its way since the last scores, and comes after O has left.
template <class C>
FLASH3_DEVICE void consume(const Params& params, Shared<C>& shared) {
  Consumer<C> self;
  self.warpgroup = warpgroup_index() - 1;
  constexpr int own_loop = C::tile.blocks_for_own_loop();
  Accumulator<C::head_dim_v> out;
  RingPosition<work_stages> work_at;
  RingPosition<C::q_stages> q_at;
  wait_full(shared.work_ring, work_at);
  Tile tile = shared.tile(work_at);  // of the next scores
  if (!tile[tile_valid]) return;
  begin_tile(params, shared, tile, self, q_at);
  FLASH3_NO_UNROLL
  while (true) {
    if (own_loop < C::tile.never && self.block - self.last_block >= own_loop) {
      FLASH3_NO_UNROLL
      while (!self.is_last()) {
        --self.block;
        take_step(params, shared, tile, self, q_at, false, out);
      }
    }
    const Rows rows = self.rows;
    const bool ends = own_loop == 0 || self.is_last();
    bool goes_on = true;
    if (ends) {
      if constexpr (C::q_stages > 1) release_by_warp(shared.q_ring, q_at);
      q_at.advance();
      goes_on = C::q_stages > 1 && may_overlap<C>(shared, tile, work_at.next(), self.warpgroup);
      if (goes_on) {
        tile = shared.tile(work_at.next());
        turn_to(shared, tile, self, q_at);
      }
    } else {
      --self.block;
    }
    if (goes_on) {
      if constexpr (C::q_stages > 1) take_step(params, shared, tile, self, q_at, ends, out);
    } else {
      end_tile(shared, tile, self, out);
    }
    if (!ends) continue;
    finish_tile<C>(params, shared, shared.tile(work_at), self.warpgroup, rows, out);
    self.accumulate = false;
    release_by_warp(shared.work_ring, work_at);
    work_at.advance();
    if (goes_on) continue;
    wait_full(shared.work_ring, work_at);
    tile = shared.tile(work_at);
    if (!tile[tile_valid]) return;
    begin_tile(params, shared, tile, self, q_at);
  }
}

// Every thread of the block calls it, first.
template <class C>
FLASH3_DEVICE void begin_block(const Params& params, Shared<C>& shared) {
  if (warp_index() == 1 && elect_one()) {
    prefetch_tensor_map(params.query);
    prefetch_tensor_map(params.key);
    prefetch_tensor_map(params.value);
  }
  if (warp_index() == 0 && elect_one()) {
    shared.q_ring.init(4 * C::warpgroups);
    shared.k_ring.init(4 * C::warpgroups);
    shared.v_ring.init(4 * C::warpgroups);
    shared.work_ring.init(4 * C::warpgroups + 2);
    mbarrier_init(shared.next_wanted, 1);
    fence_mbarrier_init();
  }
  sync_block();
}

template <class C>
FLASH3_KERNEL(C::threads, 1)
forward_kernel(FLASH3_GRID_CONSTANT(Params) params) {
  auto& shared = shared_memory<Shared<C>>();
  begin_block(params, shared);
  if (warpgroup_index() == 0) {
    setmaxnreg_dec<C::producer_registers>();
    if (warp_index() == 0) schedule<C>(params, shared);
    if (thread_index() == 32) produce_query_key<C>(params, shared);
    if (thread_index() == 64) produce_value<C>(params, shared);
  } else {
    setmaxnreg_inc<C::consumer_registers>();
    consume<C>(params, shared);
  }
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
