// A tile's end: sinks, division by the sums, log-sum-exp, and the way of O to global memory.
#pragma once

#include "forward/repair.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// The query head of row `row` of a warpgroup's 64.
FLASH3_DEVICE int head_of(const Params& params, const Tile& tile, int row) {
  return tile[tile_head] * params.group + row % params.group;
}

// Closes the sums: factor[half] is what the row's output is multiplied by; writes the log-sum-exp if asked for.
template <class C>
FLASH3_DEVICE void close_rows(const Params& params, const Tile& tile, int warpgroup, Rows& rows, float (&factor)[2]) {
  const int first = position_of_share(params, tile, warpgroup);
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = row_of(half, thread_index() % 128);
    const int position = first + row / params.group;
    float total = row_sum(rows.sum[half]);
    float reference = rows.reference[half];
    float numerator = 1;
    // A row that sees no key has total 0: output 0, log-sum-exp -inf, and the sink does not join.
    if (params.sinks != nullptr && total != 0) {
      const float sink = load_global_constant(params.sinks + head_of(params, tile, row)) * log2_e;
      if (sink > reference) {
        numerator = exp2_approx(reference - sink);
        total = total * numerator + 1;
        reference = sink;
      } else {
        total += exp2_approx(sink - reference);
      }
    }
    factor[half] = total == 0 ? 0 : numerator * rcp_approx(total);
    if (params.lse != nullptr && lane_index() % 4 == 0 && position < tile[tile_seqlen_q]) {
      float* lse = params.lse + tile[tile_q_batch] * params.lse_batch_stride +
                   head_of(params, tile, row) * params.lse_head_stride + tile[tile_q_row] + position;
      store_global(lse, (reference + log2_approx(total)) * ln_2);
    }
  }
}

// Rounds O into the warpgroup's buffer.
template <class C>
FLASH3_DEVICE void stage_out(const Accumulator<C::head_dim_v>& out, typename Shared<C>::OutTile& buffer) {
  using T = typename C::Element;
  const int thread = opaque(thread_index() % 128), lane = thread % 32, warp = thread / 32;
  FLASH3_UNROLL
  for (int i = 0; i < C::head_dim_v / 16; ++i) {
    const unsigned words[4] = {pack<T>(out[8 * i], out[8 * i + 1]), pack<T>(out[8 * i + 2], out[8 * i + 3]),
                               pack<T>(out[8 * i + 4], out[8 * i + 5]), pack<T>(out[8 * i + 6], out[8 * i + 7])};
    stmatrix_x4(buffer.address(warp * 16 + lane % 16, i * 16 + lane / 16 * 8), words);
  }
}

// Copies the rows that exist, 16 bytes at a time, columns past head_dim_v left alone.
template <class C>
FLASH3_DEVICE void store_rows(const Params& params, const Tile& tile, int warpgroup,
                              const typename Shared<C>::OutTile& buffer) {
  using T = typename C::Element;
  constexpr int chunks = C::head_dim_v / 8;
  const int first = position_of_share(params, tile, warpgroup);
  for (int i = thread_index() % 128; i < 64 * chunks; i += 128) {
    const int row = i / chunks, column = i % chunks * 8;
    const int position = first + row / params.group;
    if (position >= tile[tile_seqlen_q] || column >= params.head_dim_v) continue;
    const Words4 words = load_shared_16(buffer.address(row, column));
    const Address<void*>& out = params.out_address;
    T* target = static_cast<T*>(out.data) + tile[tile_q_batch] * out.batch_stride +
                (tile[tile_q_row] + position) * out.row_stride + head_of(params, tile, row) * out.head_stride + column;
    if (column + 8 <= params.head_dim_v) {
      store_global_16(target, words);
    } else {
      FLASH3_UNROLL
      for (int e = 0; e < 8; ++e) {
        const unsigned pair = words.word[e / 2];
        if (column + e < params.head_dim_v) {
          store_global(target + e, T{static_cast<unsigned short>(e % 2 == 0 ? pair & 0xffffu : pair >> 16)});
        }
      }
    }
  }
}

// One thread of each warpgroup owns its bulk groups.
FLASH3_DEVICE bool owns_stores() { return thread_index() % 128 == 0; }

template <class C>
FLASH3_DEVICE void finish_tile(const Params& params, Shared<C>& shared, const Tile& tile, int warpgroup,
                               const RingPosition<C::q_stages>& q_at, Rows& rows, Accumulator<C::head_dim_v>& out) {
  float factor[2];
  close_rows<C>(params, tile, warpgroup, rows, factor);
  scale_rows(out, factor);
  bool bad[2];
  find_bad_rows<C>(tile, warpgroup, out, factor, bad);

  auto& buffer = shared.out(warpgroup);
  if constexpr (C::out_apart) {
    if (owns_stores()) bulk_wait_group_read<0>();  // the last tile's store has left the buffer
  }
  named_barrier_sync(out_buffer + warpgroup, 128);
  stage_out<C>(out, buffer);
  repair_rows<C>(params, tile, warpgroup, rows, factor, bad, buffer);
  fence_proxy_async();
  named_barrier_sync(out_buffer + warpgroup, 128);
  const int positions = 64 / params.group, position = position_of_share(params, tile, warpgroup);
  if (params.guarded_columns || (params.guarded_rows && position + positions > tile[tile_seqlen_q])) {
    store_rows<C>(params, tile, warpgroup, buffer);
  } else if (owns_stores()) {
    store_tile(params.out, {0, 0, tile[tile_q_row] + position, tile[tile_head], tile[tile_q_batch]}, buffer);
    bulk_commit_group();
  }
  if constexpr (!C::out_apart) {
    if (owns_stores()) bulk_wait_group_read<0>();
    release_by_warp(shared.q_ring, q_at);
  }
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
