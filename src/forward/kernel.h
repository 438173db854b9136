// The forward kernel: a warpgroup of which one warp schedules and two threads produce, two to four consumer warpgroups.
#pragma once

#include "forward/epilogue.h"
#include "forward/mainloop.h"
#include "forward/producer.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

template <class C>
FLASH3_DEVICE void consume(const Params& params, Shared<C>& shared) {
  Consumer<C> self{warpgroup_index() - 1, {}, {}};
  Operand<typename C::Element, C::block_kv> probabilities;
  Rows next_rows;
  bool begun = false;
  wait_full(shared.work_ring, position_of<work_stages>(0));
  for (unsigned count = 0; shared.tile(position_of<work_stages>(count))[tile_valid]; ++count) {
    const RingPosition<C::q_stages> q_at = position_of<C::q_stages>(count);
    const Tile tile = shared.tile(position_of<work_stages>(count));
    Accumulator<C::head_dim_v> out;
    Rows rows = next_rows;
    if (!begun) begin_tile(params, shared, tile, self, q_at, rows, probabilities);
    const bool accumulate = visit_blocks(params, shared, tile, self, q_at, rows, probabilities, out);
    if constexpr (C::out_apart) release_by_warp(shared.q_ring, q_at);

    next_rows = Rows{};
    const RingPosition<work_stages> next_at = position_of<work_stages>(count + 1);
    const Tile next = shared.tile(next_at);
    begun = C::out_apart && may_overlap<C>(shared, tile, next, next_at, self.warpgroup);
    if (begun) {
      end_and_begin_tile(params, shared, next, self, position_of<C::q_stages>(count + 1), next_rows, probabilities, out,
                         accumulate);
    } else {
      end_tile(shared, tile, self, probabilities, out, accumulate);
    }
    finish_tile<C>(params, shared, tile, self.warpgroup, q_at, rows, out);
    release_by_warp(shared.work_ring, position_of<work_stages>(count));
    wait_full(shared.work_ring, next_at);
  }
  if (owns_stores()) bulk_wait_group_read<0>();  // shared memory must outlive its last store
}

// Every thread of the block calls it, first.
template <class C>
FLASH3_DEVICE void begin_block(Shared<C>& shared) {
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
  begin_block(shared);
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
