// The forward kernel: a warpgroup of which one warp schedules and three threads produce, two to four consumer
// warpgroups.
#pragma once

#include "forward/epilogue.h"
#include "forward/mainloop.h"
#include "forward/producer.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// The tiles of a warpgroup, one after the other, where their queries share one place.
template <class C>
FLASH3_DEVICE void consume_one_by_one(const Params& params, Shared<C>& shared, Consumer<C>& self) {
  Accumulator<C::head_dim_v> out;
  RingPosition<C::q_stages> q_at;
  NextTile is;
  FLASH3_NO_UNROLL
  for (RingPosition<work_stages> work_at;; work_at.advance()) {
    wait_full_unless(is.named, shared.work_ring, work_at);
    const Tile tile = shared.tile(work_at);
    if (!tile[tile_valid]) return;
    begin_tile(params, shared, tile, self, q_at, is.q_full);
    take_steps(params, shared, tile, self, q_at, out);
    q_at.advance();
    is = end_tile(shared, tile, self, work_at.next(), q_at, out);
    finish_tile<C>(params, shared, tile, self.warpgroup, self.rows, out);
    release_by_warp(shared.work_ring, work_at);
  }
}

// With a second place for queries: the next tile's first scores are computed while this one's output leaves.
template <class C>
FLASH3_DEVICE void consume_overlapping(const Params& params, Shared<C>& shared, Consumer<C>& self) {
  Accumulator<C::head_dim_v> out;
  RingPosition<work_stages> work_at;
  RingPosition<C::q_stages> q_at;
  wait_full(shared.work_ring, work_at);
  Tile tile = shared.tile(work_at);
  if (!tile[tile_valid]) return;
  begin_tile(params, shared, tile, self, q_at, false);
  FLASH3_NO_UNROLL
  while (true) {
    take_steps(params, shared, tile, self, q_at, out);
    q_at.advance();
    const RingPosition<work_stages> next_at = work_at.next();
    const NextTile is = end_tile(shared, tile, self, next_at, q_at, out);
    const Tile next = shared.tile(next_at);
    wait_full_unless(is.named, shared.work_ring, next_at);
    if (!next[tile_valid]) break;
    const Rows rows = self.rows;
    Accumulator<C::block_kv> scores;
    start_tile(shared, next, self, q_at, is.q_full, scores);
    finish_tile<C>(params, shared, tile, self.warpgroup, rows, out);
    release_by_warp(shared.work_ring, work_at);
    take_first_step(params, shared, next, self, q_at, scores);
    work_at = next_at;
    tile = next;
  }
  finish_tile<C>(params, shared, tile, self.warpgroup, self.rows, out);
}

template <class C>
FLASH3_DEVICE void consume(const Params& params, Shared<C>& shared) {
  Consumer<C> self;
  self.warpgroup = warpgroup_index() - 1;
  if constexpr (C::q_stages > 1) {
    consume_overlapping(params, shared, self);
  } else {
    consume_one_by_one(params, shared, self);
  }
  wait_until_out_is_taken();
}

// Every thread of the block calls it, first.
template <class C>
FLASH3_DEVICE void begin_block(const Params& params, Shared<C>& shared) {
  if (warp_index() == 1 && elect_one()) {
    prefetch_tensor_map(params.query);
    prefetch_tensor_map(params.key);
    prefetch_tensor_map(params.value);
    prefetch_tensor_map(params.out);
  }
  if (warp_index() == 0 && elect_one()) {
    shared.q_ring.init(4 * C::warpgroups);
    shared.k_ring.init(4 * C::warpgroups);
    shared.v_ring.init(4 * C::warpgroups);
    shared.work_ring.init(4 * C::warpgroups + 3);
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
    produce<C>(params, shared);
  } else {
    setmaxnreg_inc<C::consumer_registers>();
    consume<C>(params, shared);
  }
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
