// Owns two small kernels that use the instruction room as attention does: a ring that one warp fills and two warpgroups
// empty, products from shared memory and from registers, and an epilogue through shared memory.
#pragma once

#include "hopper/hopper.h"

namespace flash3::toy::inline FLASH3_MACHINE {

using namespace hopper;

// out (M x N) = a (M x K) b^T (N x K), in T. One block computes 128 x 128; K comes in steps of 64.
struct GemmParams {
  TensorMap a, b, out;  // coordinates {column, row}
  int k_steps;
};

template <class T>
struct GemmShared {
  static constexpr int stages = 3;
  SharedTile<T, 128, 64> a[stages];
  SharedTile<T, 128, 64> b[stages];
  SharedTile<T, 128, 128> out;
  Ring<stages> ring;
};

inline constexpr int gemm_threads = 3 * 128;
// Named barriers: both consumer warpgroups have written their rows of the result.
inline constexpr int sum_written = 1;
inline constexpr int out_written = 1;

template <class T>
FLASH3_DEVICE void gemm_produce(const GemmParams& params, GemmShared<T>& shared) {
  RingPosition<GemmShared<T>::stages> at;
  for (int step = 0; step < params.k_steps; ++step, at.advance()) {
    wait_empty(shared.ring, at);
    announce(shared.ring, at, shared.a[0].byte_count + shared.b[0].byte_count);
    load_tile(shared.a[at.stage], params.a, {step * 64, block_x() * 128}, shared.ring.full[at.stage]);
    load_tile(shared.b[at.stage], params.b, {step * 64, block_y() * 128}, shared.ring.full[at.stage]);
  }
}

// Rounds a 64 x N accumulator and writes it to rows row0 ... row0 + 63 of a tile.
template <class T, int N, int rows, int columns, Swizzle swizzle>
FLASH3_DEVICE void write_fragment(const Accumulator<N>& from, SharedTile<T, rows, columns, swizzle>& to, int row0) {
  const int lane = lane_index();
  const int warp = (thread_index() / 32) % 4;
  FLASH3_UNROLL
  for (int i = 0; i < N / 16; ++i) {
    const unsigned words[4] = {pack<T>(from[8 * i], from[8 * i + 1]), pack<T>(from[8 * i + 2], from[8 * i + 3]),
                               pack<T>(from[8 * i + 4], from[8 * i + 5]), pack<T>(from[8 * i + 6], from[8 * i + 7])};
    stmatrix_x4(to.address(row0 + warp * 16 + lane % 16, i * 16 + lane / 16 * 8), words);
  }
}

template <class T, class Release>
FLASH3_DEVICE void gemm_consume(const GemmParams& params, GemmShared<T>& shared, Release release_stage) {
  const int consumer = warpgroup_index() - 1;
  RingPosition<GemmShared<T>::stages> at;
  Accumulator<128> sum;
  for (int step = 0; step < params.k_steps; ++step, at.advance()) {
    wait_full(shared.ring, at);
    wgmma_fence();
    multiply_abt(sum, shared.a[at.stage], consumer * 64, shared.b[at.stage], 0, step > 0);
    wgmma_commit_group();
    wgmma_wait_group<0>(sum);
    release_stage(at);
  }
  write_fragment(sum, shared.out, consumer * 64);
  fence_proxy_async();
  named_barrier_sync(sum_written, 256);
  if (warp_index() == 4 && elect_one()) {
    store_tile(params.out, {block_y() * 128, block_x() * 128}, shared.out);
    bulk_commit_group();
    bulk_wait_group<0>();
  }
}

template <class T>
FLASH3_KERNEL(gemm_threads, 1)
gemm_kernel(FLASH3_GRID_CONSTANT(GemmParams) params) {
  auto& shared = shared_memory<GemmShared<T>>();
  if (warp_index() == 0 && elect_one()) {
    shared.ring.init(256);
    fence_mbarrier_init();
  }
  sync_block();
  if (warpgroup_index() == 0) {
    setmaxnreg_dec<40>();
    if (warp_index() == 0 && elect_one()) gemm_produce<T>(params, shared);
  } else {
    setmaxnreg_inc<232>();
    gemm_consume<T>(params, shared, [&](const RingPosition<GemmShared<T>::stages>& at) { release(shared.ring, at); });
  }
}

// out (128 x D) = rounded(q k^T) v over blocks of 64 keys: attention without its softmax. One block of 2 + 1 warpgroups
// a (tile of 128 queries, head, batch).
struct LinearParams {
  TensorMap q, k, v, out;  // coordinates {column, row, head, batch}
  int key_blocks;
  float scale;
};

template <class T, int D>
struct LinearShared {
  static constexpr int stages = 2;
  static constexpr int key_rows = 64;
  SharedTile<T, 128, D> q;  // later: out
  SharedTile<T, key_rows, D> k[stages];
  SharedTile<T, key_rows, D> v[stages];
  Barrier q_full;
  Ring<stages> k_ring;
  Ring<stages> v_ring;
};

template <class T, int D>
FLASH3_DEVICE void linear_produce(const LinearParams& params, LinearShared<T, D>& shared) {
  const int head = block_y(), batch = block_z();
  mbarrier_arrive_expect_tx(shared.q_full, shared.q.byte_count);
  load_tile(shared.q, params.q, {0, block_x() * 128, head, batch}, shared.q_full, CacheHint::evict_first);
  RingPosition<LinearShared<T, D>::stages> at;
  for (int block = 0; block < params.key_blocks; ++block, at.advance()) {
    const int row = block * LinearShared<T, D>::key_rows;
    wait_empty(shared.k_ring, at);
    announce(shared.k_ring, at, shared.k[0].byte_count);
    load_tile(shared.k[at.stage], params.k, {0, row, head, batch}, shared.k_ring.full[at.stage], CacheHint::evict_last);
    wait_empty(shared.v_ring, at);
    announce(shared.v_ring, at, shared.v[0].byte_count);
    load_tile(shared.v[at.stage], params.v, {0, row, head, batch}, shared.v_ring.full[at.stage], CacheHint::evict_last);
  }
}

template <class T, int D>
FLASH3_DEVICE void linear_consume(const LinearParams& params, LinearShared<T, D>& shared) {
  constexpr int key_rows = LinearShared<T, D>::key_rows;
  const int consumer = warpgroup_index() - 1;
  const bool leader = thread_index() % 32 == 0;  // one arrival a warp
  Accumulator<key_rows> scores;
  Accumulator<D> out;
  Operand<T, key_rows> p;
  RingPosition<LinearShared<T, D>::stages> at;
  mbarrier_wait_parity(shared.q_full, 0);
  for (int block = 0; block < params.key_blocks; ++block, at.advance()) {
    wait_full(shared.k_ring, at);
    wgmma_fence();
    multiply_abt(scores, shared.q, consumer * 64, shared.k[at.stage], 0, false);
    wgmma_commit_group();
    wgmma_wait_group<0>(scores, out);
    sync_warp();
    if (leader) release(shared.k_ring, at);
    FLASH3_UNROLL
    for (int i = 0; i < scores.count; ++i) scores[i] *= params.scale;
    repack(scores, p);
    wait_full(shared.v_ring, at);
    wgmma_fence();
    multiply_ab(out, p, shared.v[at.stage], 0, 0, block > 0);
    wgmma_commit_group();
    wgmma_wait_group<0>(out, p);
    sync_warp();
    if (leader) release(shared.v_ring, at);
  }
  // Each warpgroup reuses its own half of q: its own wgmma have read it.
  write_fragment(out, shared.q, consumer * 64);
  fence_proxy_async();
  named_barrier_sync(out_written, 256);
  if (warp_index() == 4 && elect_one()) {
    store_tile(params.out, {0, block_x() * 128, block_y(), block_z()}, shared.q);
    bulk_commit_group();
    bulk_wait_group<0>();
  }
}

template <class T, int D>
FLASH3_KERNEL(gemm_threads, 1)
linear_kernel(FLASH3_GRID_CONSTANT(LinearParams) params) {
  auto& shared = shared_memory<LinearShared<T, D>>();
  if (warp_index() == 0 && elect_one()) {
    mbarrier_init(shared.q_full, 1);
    shared.k_ring.init(8);
    shared.v_ring.init(8);
    fence_mbarrier_init();
  }
  sync_block();
  if (warpgroup_index() == 0) {
    setmaxnreg_dec<40>();
    if (warp_index() == 0 && elect_one()) linear_produce<T, D>(params, shared);
  } else {
    setmaxnreg_inc<232>();
    linear_consume<T, D>(params, shared);
  }
}

}  // namespace flash3::toy::inline FLASH3_MACHINE
