// The producers: three threads that have TMA bring Q, K and V, as far ahead as the rings allow. Each waits for stages
// of its own: keys of the next tile come while its queries' place is still taken.
#pragma once

#include "forward/scheduler.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

using namespace hopper;

template <class C>
FLASH3_DEVICE void load_key(const Params& params, Shared<C>& shared, RingPosition<C::k_stages>& at, int row, int head,
                            int batch) {
  wait_empty(shared.k_ring, at);
  announce(shared.k_ring, at, shared.k[0].byte_count);
  load_tile(shared.k[at.stage], params.key, {0, row, head, batch}, shared.k_ring.full[at.stage]);
  at.advance();
}

// The product P V multiplies every row of V in the block, those that nobody may see by probability 0, and 0 x NaN is
// NaN: rows that no query of the sequence sees (padding, another sequence) must not come in. A block that has some is
// brought in pieces of 8 rows and of 1, the invisible ones from beyond the tensor's end, where TMA fills with zero.
template <class C>
FLASH3_DEVICE void load_value(const Params& params, Shared<C>& shared, RingPosition<C::v_stages>& at, const Tile& tile,
                              int head, int block) {
  auto& v = shared.v[at.stage];
  Barrier& full = shared.v_ring.full[at.stage];
  const int begin = block * C::block_kv, row0 = tile[tile_kv_row], batch = tile[tile_kv_batch];
  const int visible_begin = tile[tile_visible_begin], visible_end = tile[tile_visible_end];
  // Of a sequence that ends with the tensor, TMA fills the rest anyway.
  const bool ends_inside = begin + C::block_kv > visible_end && row0 + visible_end < params.rows_kv;
  wait_empty(shared.v_ring, at);
  announce(shared.v_ring, at, v.byte_count);
  if (begin >= visible_begin && !ends_inside) {
    load_tile(v, params.value, {0, row0 + begin, head, batch}, full);
  } else {
    FLASH3_NO_UNROLL
    for (int row = 0; row < C::block_kv; row += 8) {
      const int first = begin + row;
      const bool none = first + 8 <= visible_begin || first >= visible_end;
      const bool all = first >= visible_begin && first + 8 <= visible_end;
      FLASH3_NO_UNROLL
      for (int panel = 0; panel < v.panels; ++panel) {
        const SharedAddress target = v.panel(panel) + static_cast<unsigned>(row * v.row_bytes);
        const int column = panel * v.panel_columns;
        if (none || all) {
          cp_async_bulk_tensor_load(target, params.value_rows_8,
                                    {column, none ? params.rows_kv : row0 + first, head, batch}, full);
          continue;
        }
        FLASH3_NO_UNROLL
        for (int r = 0; r < 8; ++r) {
          const bool seen = first + r >= visible_begin && first + r < visible_end;
          cp_async_bulk_tensor_load(target + static_cast<unsigned>(r * v.row_bytes), params.value_rows_1,
                                    {column, seen ? row0 + first + r : params.rows_kv, head, batch}, full);
        }
      }
    }
  }
  at.advance();
}

template <class C>
FLASH3_DEVICE void load_query(const Params& params, Shared<C>& shared, RingPosition<C::q_stages>& at,
                              const Tile& tile) {
  wait_empty(shared.q_ring, at);
  announce(shared.q_ring, at, C::warpgroups * shared.q[0][0].byte_count);
  const int positions = 64 >> params.group_shift;
  FLASH3_NO_UNROLL
  for (int w = 0; w < C::warpgroups; ++w) {
    load_tile(shared.q[at.stage][w], params.query,
              {0, 0, tile[tile_q_row] + tile[tile_position] + w * positions, tile[tile_head], tile[tile_q_batch]},
              shared.q_ring.full[at.stage], CacheHint::evict_first);
  }
  at.advance();
}

// The tiles that the scheduler names, one after the other, each held until `bring` has issued its copies.
template <class C, class Bring>
FLASH3_DEVICE void for_each_tile(Shared<C>& shared, Bring bring) {
  for (unsigned count = 0;; ++count) {
    const RingPosition<work_stages> work_at = position_of<work_stages>(count);
    wait_full(shared.work_ring, work_at);
    const Tile tile = shared.tile(work_at);
    if (!tile[tile_valid]) return;
    bring(tile);
    release(shared.work_ring, work_at);
  }
}

template <class C>
FLASH3_DEVICE void produce_query(const Params& params, Shared<C>& shared) {
  RingPosition<C::q_stages> q_at;
  for_each_tile(shared, [&](const Tile& tile) { load_query<C>(params, shared, q_at, tile); });
}

template <class C>
FLASH3_DEVICE void produce_key(const Params& params, Shared<C>& shared) {
  RingPosition<C::k_stages> k_at;
  for_each_tile(shared, [&](const Tile& tile) {
    const int head = tile[tile_kv_head];
    const int begin = tile[tile_block_begin], end = tile[tile_block_end];
    // With this many blocks still to come the scheduler has about twice a ring's length for its work.
    const int nearly_done = begin + C::k_stages < end ? begin + C::k_stages : end - 1;
    FLASH3_NO_UNROLL
    for (int block = end - 1; block >= begin; --block) {
      if (block == nearly_done) mbarrier_arrive(shared.next_wanted);
      load_key<C>(params, shared, k_at, tile[tile_kv_row] + block * C::block_kv, head, tile[tile_kv_batch]);
    }
  });
}

template <class C>
FLASH3_DEVICE void produce_value(const Params& params, Shared<C>& shared) {
  RingPosition<C::v_stages> v_at;
  for_each_tile(shared, [&](const Tile& tile) {
    const int head = tile[tile_kv_head];
    const int begin = tile[tile_block_begin];
    FLASH3_NO_UNROLL
    for (int block = tile[tile_block_end] - 1; block >= begin; --block) {
      load_value<C>(params, shared, v_at, tile, head, block);
    }
  });
}

// The first warpgroup's whole life: it gives its registers away; one warp schedules, a thread of each other one
// produces.
template <class C>
FLASH3_DEVICE void produce(const Params& params, Shared<C>& shared) {
  setmaxnreg_dec<C::producer_registers>();
  if (warp_index() == 0) schedule<C>(params, shared);
  if (thread_index() == 32) produce_query<C>(params, shared);
  if (thread_index() == 64) produce_key<C>(params, shared);
  if (thread_index() == 96) produce_value<C>(params, shared);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
