// The forward kernel with one of the paper's techniques switched off, to measure what each is worth. Diagnostic: only
// builds with FLASH3_ABLATION, and tests, compile it. It is made of the same parts as kernel.h; what differs is who
// brings the data, in which order a warpgroup computes, and who waits for whom. Tiles do not overlap each other here.
#pragma once

#include "forward/instance.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

struct Techniques {
  bool specialised = true;  // producers have warps of their own, and give registers away; else one consumer thread
                            // brings everything, between its own steps
  bool pipelined = true;  // a block's softmax beside the product P V of the block before; else S, softmax, P V in turn
  bool overlapping = true;  // one warpgroup's softmax beside another's products; else all go step by step together
};

template <class C, Techniques techniques_>
struct Ablated : C {
  static constexpr Techniques techniques = techniques_;
  static constexpr int threads = C::threads - (techniques.specialised ? 0 : 128);
  static constexpr int first_consumer = techniques.specialised ? 1 : 0;  // warpgroup
};

inline constexpr int all_consumers = 15;  // named barrier

// Brings a tile's keys and values in one of the consumers' threads, always as many blocks ahead as there are stages.
template <class C>
struct Bringer {
  int key_block = 0, value_block = 0;  // next to be brought
  RingPosition<C::q_stages> q_at;
  RingPosition<C::k_stages> k_at;
  RingPosition<C::v_stages> v_at;

  FLASH3_DEVICE static bool is_me() { return !C::techniques.specialised && thread_index() == 0; }

  FLASH3_DEVICE void begin(const Params& params, Shared<C>& shared, const Tile& tile) {
    if (!is_me()) return;
    load_query<C>(params, shared, q_at, tile);
    key_block = value_block = tile[tile_block_end] - 1;
    FLASH3_NO_UNROLL
    for (int i = 0; i < C::k_stages; ++i) key(params, shared, tile);
    FLASH3_NO_UNROLL
    for (int i = 0; i < C::v_stages; ++i) value(params, shared, tile);
  }
  FLASH3_DEVICE void key(const Params& params, Shared<C>& shared, const Tile& tile) {
    if (!is_me() || key_block < tile[tile_block_begin]) return;
    load_key<C>(params, shared, k_at, tile[tile_kv_row] + key_block * C::block_kv, tile[tile_kv_head],
                tile[tile_kv_batch]);
    --key_block;
  }
  FLASH3_DEVICE void value(const Params& params, Shared<C>& shared, const Tile& tile) {
    if (!is_me() || value_block < tile[tile_block_begin]) return;
    load_value<C>(params, shared, v_at, tile, tile[tile_kv_head], value_block);
    --value_block;
  }
};

template <class C>
FLASH3_DEVICE void step_together() {
  if constexpr (!C::techniques.overlapping) named_barrier_sync(all_consumers, 128 * C::warpgroups);
}

template <class C>
FLASH3_DEVICE void key_done(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                            Bringer<C>& bringer) {
  release_and_advance(shared.k_ring, self.k_at);
  bringer.key(params, shared, tile);
}
template <class C>
FLASH3_DEVICE void value_done(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                              Bringer<C>& bringer) {
  release_and_advance(shared.v_ring, self.v_at);
  bringer.value(params, shared, tile);
}

template <class C>
FLASH3_DEVICE void skip_steps(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                              Bringer<C>& bringer, int count) {
  FLASH3_NO_UNROLL
  for (int i = 0; i < count; ++i) {
    step_together<C>();
    wait_full(shared.k_ring, self.k_at);
    key_done(params, shared, tile, self, bringer);
    wait_full(shared.v_ring, self.v_at);
    value_done(params, shared, tile, self, bringer);
  }
}

template <class C>
FLASH3_DEVICE bool softmax_step(const Params& params, const Tile& tile, Consumer<C>& self,
                                Accumulator<C::block_kv>& scores, BlockSums& block) {
  if (self.settled && !self.is_masked()) return softmax_by_sum(params, self, scores, block);
  return softmax_by_maximum<C>(params, tile, self, scores, block);
}

// One tile from Q to global memory.
template <class C>
FLASH3_DEVICE void compute_tile(const Params& params, Shared<C>& shared, const Tile& tile, Consumer<C>& self,
                                Bringer<C>& bringer, const RingPosition<C::q_stages>& q_at) {
  Accumulator<C::head_dim_v> out;
  Accumulator<C::block_kv> scores;
  BlockSums block;
  self.take(tile);

  skip_steps(params, shared, tile, self, bringer, tile.share(self.warpgroup, share_before));
  step_together<C>();
  wait_full(shared.q_ring, q_at);
  issue_scores(shared, self, q_at.stage, scores);
  wgmma_wait_group<0>(scores);
  key_done(params, shared, tile, self, bringer);
  softmax_by_maximum<C>(params, tile, self, scores, block);
  repack(scores, self.probabilities);
  FLASH3_NO_UNROLL
  while (--self.block >= self.last_block) {
    bool moved = false;
    if constexpr (C::techniques.pipelined) {
      step_together<C>();
      issue_scores(shared, self, q_at.stage, scores);
      issue_output(shared, self, out);
      wgmma_wait_group<1>(scores);
      key_done(params, shared, tile, self, bringer);
      moved = softmax_step<C>(params, tile, self, scores, block);
      wgmma_wait_group<0>(out, self.probabilities);
      value_done(params, shared, tile, self, bringer);
    } else {
      issue_output(shared, self, out);
      wgmma_wait_group<0>(out, self.probabilities);
      value_done(params, shared, tile, self, bringer);
      step_together<C>();
      issue_scores(shared, self, q_at.stage, scores);
      wgmma_wait_group<0>(scores);
      key_done(params, shared, tile, self, bringer);
      moved = softmax_step<C>(params, tile, self, scores, block);
    }
    if (moved) scale_rows(out, block.factor);
    repack(scores, self.probabilities);
  }
  issue_output(shared, self, out);
  wgmma_wait_group<0>(out, self.probabilities);
  value_done(params, shared, tile, self, bringer);
  skip_steps(params, shared, tile, self, bringer, tile.share(self.warpgroup, share_after));
  release_by_warp(shared.q_ring, q_at);
  finish_tile<C>(params, shared, tile, self.warpgroup, self.rows, out);
}

template <class C>
FLASH3_DEVICE void consume_specialised(const Params& params, Shared<C>& shared) {
  Consumer<C> self;
  self.warpgroup = warpgroup_index() - C::first_consumer;
  Bringer<C> nobody;
  for (unsigned count = 0;; ++count) {
    wait_full(shared.work_ring, position_of<work_stages>(count));
    const Tile tile = shared.tile(position_of<work_stages>(count));
    if (!tile[tile_valid]) break;
    compute_tile(params, shared, tile, self, nobody, position_of<C::q_stages>(count));
    release_by_warp(shared.work_ring, position_of<work_stages>(count));
  }
  wait_until_out_is_taken();
}

template <class C>
FLASH3_DEVICE void consume_unspecialised(const Params& params, Shared<C>& shared) {
  Consumer<C> self;
  self.warpgroup = warpgroup_index();
  Bringer<C> bringer;
  int index = block_x();
  if (warp_index() == 0 && params.unequal_lengths) begin_walk(params, shared.walk);
  for (unsigned count = 0;; ++count) {
    Tile tile = shared.tile(position_of<work_stages>(count));
    if (warp_index() == 0) {
      bool mine;
      const bool named = name_tile(params, shared, index, tile, mine);
      if (lane_index() == 0 && !named) tile.set(tile_valid, 0);
      if (lane_index() == 0 && named) index = take_index(params);
      index = shuffle(index, 0);
    }
    sync_block();
    if (!tile[tile_valid]) break;
    bringer.begin(params, shared, tile);
    compute_tile(params, shared, tile, self, bringer, position_of<C::q_stages>(count));
  }
  wait_until_out_is_taken();
  if (thread_index() == 0) finish_counting(params);
}

template <class C>
FLASH3_KERNEL(C::threads, 1)
ablated_kernel(FLASH3_GRID_CONSTANT(Params) params) {
  auto& shared = shared_memory<Shared<C>>();
  begin_block(params, shared);
  if constexpr (!C::techniques.specialised) {
    consume_unspecialised<C>(params, shared);
  } else if (warpgroup_index() == 0) {
    produce<C>(params, shared);
  } else {
    setmaxnreg_inc<C::consumer_registers>();
    consume_specialised<C>(params, shared);
  }
}

template <class C>
hopper::LaunchStatus start_ablated(const Params& params, int blocks, hopper::Stream stream) {
  return start_kernel<C>(ablated_kernel<C>, params, blocks, stream);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
