// The forward kernel's types: element, tile shape, shared memory as one struct with every barrier named by its event.
#pragma once

#include "hopper/hopper.h"
#include "plan/tiles.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

template <class T, int head_dim_, int head_dim_v_, int warpgroups_ = 0, int block_kv_ = 0>
struct Config {
  static constexpr plan::ForwardTile tile = plan::forward_tile(head_dim_, head_dim_v_, warpgroups_, block_kv_);
  static_assert(tile.warpgroups > 0, "these head dimensions are not in kernels.def");

  using Element = T;
  static constexpr int head_dim = head_dim_;
  static constexpr int head_dim_v = head_dim_v_;
  static constexpr int warpgroups = tile.warpgroups;
  static constexpr int block_q = tile.block_q();
  static constexpr int block_kv = tile.block_kv;
  static constexpr int k_stages = tile.k_stages;
  static constexpr int v_stages = tile.v_stages;
  static constexpr int q_stages = tile.q_stages;
  static constexpr int threads = tile.threads();
  static constexpr int producer_registers = tile.producer_registers();
  static constexpr int consumer_registers = tile.consumer_registers();
};

// What the scheduler tells the others about a tile: where its tensors are, and which blocks of keys it visits. It stays
// in shared memory, and fields are read where they are needed: registers are dearer.
enum TileField : int {
  tile_valid,     // 0: no tile is left
  tile_head,      // of query's map
  tile_kv_head,   // of key's and value's
  tile_position,  // of the tile's first row in its sequence
  tile_q_batch,
  tile_q_row,
  tile_seqlen_q,
  tile_kv_batch,
  tile_kv_row,
  tile_seqlen_kv,
  tile_band_lo,  // query i of the sequence sees key j if i + lo <= j <= i + hi
  tile_band_hi,
  tile_block_begin,
  tile_block_end,  // visited from the last to the first
  tile_visible_begin,
  tile_visible_end,  // keys that some query of the sequence sees
  tile_out,          // 64 bits: elements from O's start to the tile's first row
  tile_out_high,
  tile_lse,  // likewise from lse's
  tile_lse_high,
  tile_shares,  // from here on, for each warpgroup, its share:
};

// Of a tile's blocks, those that one of a warpgroup's 64 rows sees; and of those the ones that need no mask, because
// all of its rows see all of them.
enum ShareField : int {
  share_block_begin,
  share_full_begin,
  share_full_end,
  share_block_end,
  share_masked,  // whether some need a mask
  share_before,  // how many blocks of the tile the warpgroup leaves out before its first
  share_after,   // and after its last
  share_fields
};

inline constexpr int most_warpgroups = 4;
inline constexpr int tile_fields = tile_shares + share_fields * most_warpgroups;
inline constexpr int work_stages = 4;

// Where tile number `count` of a block stands in a ring of a power of two of stages.
template <int stages>
FLASH3_DEVICE hopper::RingPosition<stages> position_of(unsigned count) {
  static_assert((stages & (stages - 1)) == 0);
  return {static_cast<int>(count % stages), count / stages % 2};
}

using TileArray = hopper::SharedArray<int, tile_fields * work_stages>;

// A field, and the line that asks for it.
struct FieldAt {
  FLASH3_DEVICE FieldAt(TileField field_, hopper::Where where_ = hopper::Where::current())
      : field(field_), where(where_) {}
  TileField field;
  hopper::Where where;
};

// How far the scheduler has come among sequences of unequal lengths (find_tile).
enum WalkField : int { walk_digits, walk_batch, walk_counted, walk_fields };
using WalkArray = hopper::SharedArray<int, walk_fields>;

// One tile's fields.
struct Tile {
  TileArray* fields;
  int at;

  FLASH3_DEVICE int operator[](FieldAt it) const { return fields->load(at + it.field, it.where); }
  FLASH3_DEVICE int share(int warpgroup, ShareField field, hopper::Where where = hopper::Where::current()) const {
    return fields->load(at + tile_shares + warpgroup * share_fields + field, where);
  }
  // A field and the one after it, as 64 bits.
  FLASH3_DEVICE long long wide(TileField field, hopper::Where where = hopper::Where::current()) const {
    const auto low = static_cast<unsigned>(fields->load(at + field, where));
    return static_cast<long long>(fields->load(at + field + 1, where)) << 32 | low;
  }
  FLASH3_DEVICE void set_wide(TileField field, long long value, hopper::Where where = hopper::Where::current()) {
    fields->store(at + field, static_cast<int>(static_cast<unsigned>(value)), where);
    fields->store(at + field + 1, static_cast<int>(value >> 32), where);
  }
  FLASH3_DEVICE void set(int field, int value, hopper::Where where = hopper::Where::current()) {
    fields->store(at + field, value, where);
  }
};

template <class C>
struct Shared {
  using T = typename C::Element;
  using QTile = hopper::SharedTile<T, 64, C::head_dim>;

  QTile q[C::q_stages][C::warpgroups];
  hopper::SharedTile<T, C::block_kv, C::head_dim> k[C::k_stages];
  // Rows of whole 128-byte panels: one row of a panel is what TMA can bring alone (see load_value).
  hopper::SharedTile<T, C::block_kv, C::tile.v_columns()> v[C::v_stages];

  hopper::SharedTile<T, 64, C::tile.out_columns()> out[C::warpgroups][C::tile.out_places()];

  hopper::Ring<C::q_stages> q_ring;     // full: Q has landed; empty: its readers are done
  hopper::Ring<C::k_stages> k_ring;     // full: K has landed; empty: every warp's Q K^T has read it
  hopper::Ring<C::v_stages> v_ring;     // full: V has landed; empty: every warp's P V has read it
  hopper::Ring<work_stages> work_ring;  // full: a tile is named; empty: everybody is done with it
  hopper::Barrier next_wanted;          // the keys of this tile are nearly all on their way: name the next
  TileArray tiles;
  WalkArray walk;

  FLASH3_DEVICE Tile tile(const hopper::RingPosition<work_stages>& at) { return {&tiles, at.stage * tile_fields}; }
};

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
