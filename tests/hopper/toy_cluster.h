// Owns a small kernel of clusters: two blocks that bring each other half of what both need.
#pragma once

#include "hopper/toy_kernels.h"

namespace flash3::toy::inline FLASH3_MACHINE {

// gemm_kernel by clusters of two blocks that share b: each brings half of its rows to both. A stage is free when the
// warps of both have said so, and no block ends while the other may still arrive at its barriers.
template <class T>
FLASH3_DEVICE void cluster_gemm_produce(const GemmParams& params, GemmShared<T>& shared) {
  const int half = static_cast<int>(cluster_rank()) * 64;
  RingPosition<GemmShared<T>::stages> at;
  for (int step = 0; step < params.k_steps; ++step, at.advance()) {
    wait_empty(shared.ring, at);
    announce(shared.ring, at, shared.a[0].byte_count + shared.b[0].byte_count);
    load_tile(shared.a[at.stage], params.a, {step * 64, block_x() * 128}, shared.ring.full[at.stage]);
    load_tile_multicast(shared.b[at.stage], half, params.b, {step * 64, block_y() * 128 + half},
                        shared.ring.full[at.stage], 3);
  }
}

template <class T>
FLASH3_KERNEL(gemm_threads, 1)
cluster_gemm_kernel(FLASH3_GRID_CONSTANT(GemmParams) params) {
  auto& shared = shared_memory<GemmShared<T>>();
  if (warp_index() == 0 && elect_one()) {
    shared.ring.init(2 * 8);
    fence_mbarrier_init();
  }
  sync_cluster();
  if (warpgroup_index() == 0) {
    setmaxnreg_dec<40>();
    if (warp_index() == 0 && elect_one()) cluster_gemm_produce<T>(params, shared);
  } else {
    setmaxnreg_inc<232>();
    gemm_consume<T>(params, shared, [&](const RingPosition<GemmShared<T>::stages>& at) {
      sync_warp();
      if (lane_index() < 2) {
        mbarrier_arrive_cluster(shared.ring.empty[at.stage], static_cast<unsigned>(lane_index()));
      }
    });
  }
  sync_warp();
  sync_cluster();
}

}  // namespace flash3::toy::inline FLASH3_MACHINE
