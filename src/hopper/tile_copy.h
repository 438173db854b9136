// Owns copies of whole tiles by TMA, panel by panel.
#pragma once

#include "hopper/tile.h"
#include "hopper/tma.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// A whole tile, one copy a panel, from coordinates {column, row, ...}: tile.byte_count bytes on `barrier`.
template <class T, int rows, int columns, Swizzle swizzle, int dims>
FLASH3_DEVICE void load_tile(SharedTile<T, rows, columns, swizzle>& tile, const TensorMap& map, const int (&c)[dims],
                             Barrier& barrier, CacheHint hint = CacheHint::evict_normal,
                             Where where = Where::current()) {
  FLASH3_UNROLL
  for (int p = 0; p < tile.panels; ++p) {
    int at[dims];
    FLASH3_UNROLL
    for (int d = 0; d < dims; ++d) at[d] = c[d] + (d == 0 ? p * tile.panel_columns : 0);
    cp_async_bulk_tensor_load(tile.panel(p), map, at, barrier, hint, where);
  }
}

// The same to every block of `blocks` (one bit a rank), and the bytes on each one's own barrier. The map's box says how
// many rows: from `row` of the tile on, so that the blocks of a cluster can bring a share each.
template <class T, int rows, int columns, Swizzle swizzle, int dims>
FLASH3_DEVICE void load_tile_multicast(SharedTile<T, rows, columns, swizzle>& tile, int row, const TensorMap& map,
                                       const int (&c)[dims], Barrier& barrier, unsigned short blocks,
                                       CacheHint hint = CacheHint::evict_normal, Where where = Where::current()) {
  FLASH3_UNROLL
  for (int p = 0; p < tile.panels; ++p) {
    int at[dims];
    FLASH3_UNROLL
    for (int d = 0; d < dims; ++d) at[d] = c[d] + (d == 0 ? p * tile.panel_columns : 0);
    cp_async_bulk_tensor_load_multicast(tile.panel(p) + static_cast<unsigned>(row * tile.row_bytes), map, at, barrier,
                                        blocks, hint, where);
  }
}

// Stores a whole tile, one copy a panel, as part of this thread's next bulk group.
template <class T, int rows, int columns, Swizzle swizzle, int dims>
FLASH3_DEVICE void store_tile(const TensorMap& map, const int (&c)[dims],
                              const SharedTile<T, rows, columns, swizzle>& tile, Where where = Where::current()) {
  FLASH3_UNROLL
  for (int p = 0; p < tile.panels; ++p) {
    int at[dims];
    FLASH3_UNROLL
    for (int d = 0; d < dims; ++d) at[d] = c[d] + (d == 0 ? p * tile.panel_columns : 0);
    cp_async_bulk_tensor_store(map, at, tile.panel(p), where);
  }
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
