// Tile shapes of the compiled kernels, and the budgets that they must keep: shared memory and registers, at compile
// time.
//
// Plain constexpr integer code: the planner, the launcher and the kernels read the same numbers.
#pragma once

namespace flash3::plan {

inline constexpr int shared_bytes_a_block = 232448;  // 227 KiB: what a block may have on sm_90
inline constexpr int registers_an_sm = 65536;
// What a consumer thread needs beside fragments: addresses, row state, masks.
inline constexpr int other_registers = 30;

struct ForwardTile {
  int head_dim = 0, head_dim_v = 0;
  int warpgroups = 0;  // of consumers
  int block_kv = 0;
  int k_stages = 0;
  int v_stages = 0;
  int q_stages = 0;
  const char* reason = "";

  constexpr int block_q() const { return 64 * warpgroups; }
  // Consumers and one warpgroup for the producer: setmaxnreg works on whole warpgroups.
  constexpr int threads() const { return 128 * (warpgroups + 1); }

  // A kernel starts with the same number of registers in every thread, a multiple of 8.
  constexpr int launch_registers() const { return registers_an_sm / threads() / 8 * 8; }
  constexpr int consumer_registers_beside(int producer) const {
    return (launch_registers() * (warpgroups + 1) - producer) / warpgroups / 8 * 8;
  }
  // 40 where the consumers can spare them, else 32.
  constexpr int producer_registers() const {
    return fragment_registers() + other_registers <= consumer_registers_beside(40) ? 40 : 32;
  }
  constexpr int consumer_registers() const { return consumer_registers_beside(producer_registers()); }
  // Scores, probabilities in half the space, output.
  constexpr int fragment_registers() const { return block_kv / 2 + block_kv / 4 + head_dim_v / 2; }

  // Whether the softmax, once a row has its reference, looks at sums only (softmax_by_sum). Measured: that is faster,
  // but for an output of 256 columns, which leaves no register to a second loop.
  constexpr bool judges_by_sums() const { return head_dim_v < 256; }

  // Whether the softmax does all of one row first (exponentiate). Measured: it is slower where exponentials, not
  // products, set the pace and rows of a block are long.
  constexpr bool row_by_row() const { return head_dim > 64 || block_kv < 128; }

  constexpr int q_bytes() const { return q_stages * block_q() * head_dim * 2; }
  constexpr int k_bytes() const { return k_stages * block_kv * head_dim * 2; }
  constexpr int v_columns() const { return (head_dim_v + 63) / 64 * 64; }  // V in panels of 64 columns
  constexpr int v_bytes() const { return v_stages * block_kv * v_columns() * 2; }
  // O leaves through one or two places of so many columns for each row.
  constexpr int out_columns() const { return head_dim_v % 64 == 0 ? 64 : 32; }
  constexpr int out_places() const { return head_dim_v > out_columns() ? 2 : 1; }
  constexpr int out_bytes() const { return block_q() * out_columns() * out_places() * 2; }
  // 2 KiB: barriers, and the tiles' descriptions.
  constexpr int shared_bytes() const { return q_bytes() + k_bytes() + v_bytes() + out_bytes() + 2048; }

  constexpr bool fits() const {
    return shared_bytes() <= shared_bytes_a_block && fragment_registers() + other_registers <= consumer_registers() &&
           block_kv % 16 == 0 && head_dim % 32 == 0 && head_dim_v % 32 == 0;
  }
};

inline constexpr ForwardTile forward_tiles[] = {
#define FLASH3_FORWARD(head_dim, head_dim_v, warpgroups, block_kv, k_stages, v_stages, q_stages, reason) \
  {head_dim, head_dim_v, warpgroups, block_kv, k_stages, v_stages, q_stages, reason},
#include "plan/kernels.def"
#undef FLASH3_FORWARD
};

constexpr bool all_tiles_fit() {
  for (const ForwardTile& tile : forward_tiles) {
    if (!tile.fits()) return false;
  }
  return true;
}
static_assert(all_tiles_fit(), "a tile of kernels.def exceeds shared memory or registers");

// The tile compiled for exactly these head dimensions; the first of them, or the one that is also of these warpgroups
// and this block_kv.
constexpr ForwardTile forward_tile(int head_dim, int head_dim_v, int warpgroups = 0, int block_kv = 0) {
  for (const ForwardTile& tile : forward_tiles) {
    if (tile.head_dim == head_dim && tile.head_dim_v == head_dim_v &&
        (warpgroups == 0 || (tile.warpgroups == warpgroups && tile.block_kv == block_kv))) {
      return tile;
    }
  }
  return {};
}

}  // namespace flash3::plan
