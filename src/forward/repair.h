// The rare rows that the main loop could not do: computed anew, one at a time. Two things bring them here.
//
// A masked block multiplies every V row in it, with probability 0 where a query does not see the key; 0 x NaN and 0 x
// inf are NaN. V rows that no query of the sequence sees never get here (producer.h). For the others, which some rows
// of the tile see and some do not, the main loop pays nothing: a NaN in the sum cannot get lost, so it shows in O.
//
// A score may exceed a reference that nobody compares it with (softmax_by_sum) by more than float32 can hold.
#pragma once

#include "forward/mainloop.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

// The first element in O of row `row` of the tile.
template <class T>
FLASH3_DEVICE T* out_row(const Params& params, const Tile& tile, int row) {
  const Address<void*>& out = params.out_address;
  return static_cast<T*>(out.data) + tile.wide(tile_out) + position_in_tile(params, row) * out.row_stride +
         head_in_group(params, row) * out.head_stride;
}

template <class T>
FLASH3_DEVICE float load_element(const Address<const void*>& tensor, int batch, int row, int head, int column) {
  const auto* source = static_cast<const unsigned short*>(tensor.data) + batch * tensor.batch_stride +
                       row * tensor.row_stride + head * tensor.head_stride + column;
  return unpack_low<T>(load_global_constant(source));
}

FLASH3_DEVICE float* lse_of_row(const Params& params, const Tile& tile, int row) {
  return params.lse + tile.wide(tile_lse) + position_in_tile(params, row) +
         head_in_group(params, row) * params.lse_head_stride;
}

// The warpgroup's rows that exist: the first so many of its 64 (all of them, if more).
FLASH3_DEVICE int rows_existing(const Params& params, const Tile& tile, int warpgroup) {
  const int left = tile[tile_seqlen_q] - tile[tile_position], most = 64 * most_warpgroups;
  return ((left < most ? left : most) << params.group_shift) - warpgroup * 64;
}

// `total`: of the row's probabilities. A row that sees no key has total 0: output 0, log-sum-exp -inf, and the sink
// does not join.
FLASH3_DEVICE ClosedRow close_row(const Params& params, const Tile& tile, int row, float reference, float total) {
  float numerator = 1;
  if (params.sinks != nullptr) {
    const float sink =
        load_global_constant(params.sinks + (tile[tile_head] << params.group_shift) + head_in_group(params, row)) *
        log2_e;
    if (total != 0 && sink > reference) {
      numerator = exp2_approx(reference - sink);
      total = total * numerator + 1;
      reference = sink;
    } else if (total != 0) {
      total += exp2_approx(sink - reference);
    }
  }
  return {total == 0 ? 0 : numerator * rcp_approx(total), reference + log2_approx(total)};
}

// One warp computes one row, output and log-sum-exp, one key after the other, from global memory.
template <class C>
FLASH3_DEVICE void repair_row(const Params& params, const Tile& tile, int row) {
  using T = typename C::Element;
  constexpr int columns = C::head_dim_v / 32, inner = C::head_dim / 32;
  const int lane = opaque(lane_index());  // nothing of this shall wait in registers
  const int position = tile[tile_position] + position_in_tile(params, row);
  const int head = (tile[tile_head] << params.group_shift) + head_in_group(params, row);
  const int key_head = tile[tile_kv_head];
  const int seqlen_q = tile[tile_seqlen_q], seqlen_kv = tile[tile_seqlen_kv];
  const Range keys = core::keys_seen_by_any(band_of(tile), rows_from(position, 1, seqlen_q), seqlen_kv);
  float query[inner], sum[columns];
  FLASH3_UNROLL
  for (int i = 0; i < inner; ++i) {
    const int d = lane + 32 * i;
    query[i] = d < params.head_dim
                   ? load_element<T>(params.query_address, tile[tile_q_batch], tile[tile_q_row] + position, head, d)
                   : 0;
  }
  FLASH3_UNROLL
  for (int i = 0; i < columns; ++i) sum[i] = 0;
  float reference = unseen, total = 0;
  FLASH3_NO_UNROLL
  for (int key = keys.begin; key < keys.end; ++key) {
    const int key_row = tile[tile_kv_row] + key, batch = tile[tile_kv_batch];
    float score = 0;
    FLASH3_UNROLL
    for (int i = 0; i < inner; ++i) {
      const int d = lane + 32 * i;
      if (d < params.head_dim) score += query[i] * load_element<T>(params.key_address, batch, key_row, key_head, d);
    }
    FLASH3_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) score += shuffle_xor(score, distance);
    const float exponent = transform_score(params, score) * params.exponent_scale;
    const float moved = maximum(reference, exponent);
    const float factor = exp2_approx(reference - moved), probability = exp2_approx(exponent - moved);
    reference = moved;
    total = total * factor + probability;
    FLASH3_UNROLL
    for (int i = 0; i < columns; ++i) {
      const int d = lane + 32 * i;
      if (d >= params.head_dim_v) continue;
      sum[i] = sum[i] * factor + probability * load_element<T>(params.value_address, batch, key_row, key_head, d);
    }
  }
  const ClosedRow closed = close_row(params, tile, row, reference, total);
  if (params.lse != nullptr && lane == 0) store_global(lse_of_row(params, tile, row), closed.lse * ln_2);
  T* out = out_row<T>(params, tile, row);
  FLASH3_UNROLL
  for (int i = 0; i < columns; ++i) {
    const int d = lane + 32 * i;
    if (d < params.head_dim_v) {
      store_global(out + d, T{static_cast<unsigned short>(pack<T>(sum[i] * closed.factor, 0) & 0xffffu)});
    }
  }
}

// See lower_probabilities. Where a score is infinite, the total is NaN by right.
FLASH3_DEVICE bool has_overflowed(float reference, float total) { return reference == infinity && total == total; }

// Adds to the bad ones those of a thread's two rows that have a NaN in O and none in their factor: a row that has seen
// one in Q or K is NaN by right. None where nothing was masked.
template <class C>
FLASH3_DEVICE void find_poisoned_rows(const Tile& tile, int warpgroup, const Accumulator<C::head_dim_v>& out,
                                      const float (&factor)[2], bool (&bad)[2]) {
  if (tile.share(warpgroup, share_masked) == 0) return;
  // Products first, half as many instructions: where they hold no NaN, O has none.
  float any[4] = {0, 0, 0, 0};
  FLASH3_UNROLL
  for (int i = 0; i < C::head_dim_v / 2; i += 2)
    any[i / 2 % 4] = fused_multiply_add(out[i], out[i + 1], any[i / 2 % 4]);
  const float all = any[0] + any[1] + any[2] + any[3];
  if (!vote_any(all != all)) return;
  float sum[2] = {0, 0};
  FLASH3_UNROLL
  for (int i = 0; i < C::head_dim_v / 2; ++i) sum[half_of(i)] += out[i];
  FLASH3_UNROLL
  for (int half = 0; half < 2; ++half) {
    bad[half] = bad[half] || (sum[half] != sum[half] && factor[half] == factor[half]);
  }
}

// After O has been stored: each warp mends its own 16 rows.
template <class C>
FLASH3_DEVICE void repair_rows(const Params& params, const Tile& tile, int warpgroup, const bool (&bad)[2]) {
  if (!vote_any(bad[0] || bad[1])) return;
  if (lane_index() == 0) bulk_wait_group<0>();  // what TMA stores is there before it is overwritten
  FLASH3_NO_UNROLL
  for (int half = 0; half < 2; ++half) {
    const unsigned lanes = vote_ballot(half == 0 ? bad[0] : bad[1]);
    sync_warp();  // what the warp stored, any of its lanes may overwrite
    FLASH3_NO_UNROLL
    for (int quad = 0; quad < 8; ++quad) {
      if ((lanes >> (4 * quad) & 0xfu) == 0) continue;
      // Uniform, and seen to be by the compiler: one branch that may diverge here, and every product of the kernel
      // fetches its descriptors from ordinary registers (a sixth of the speed).
      const int row = warpgroup * 64 + shuffle(opaque(thread_index()), 0) % 128 / 32 * 16 + half * 8 + quad;
      if (tile[tile_position] + position_in_tile(params, row) < tile[tile_seqlen_q]) {
        repair_row<C>(params, tile, row);
      }
    }
  }
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
