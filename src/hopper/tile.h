// Owns the swizzled shared-memory tile: rows x columns elements, cut into panels of one swizzle width, panel after
// panel.
#pragma once

#include "hopper/descriptor.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// A row of a panel has 16, 32, 64 or 128 bytes (the swizzle), rows follow each other: what TMA writes for a box of
// {panel_columns, rows}. Read it by address or descriptor, never through `bytes`.
template <class T, int rows_, int columns_, Swizzle swizzle_ = widest_swizzle(columns_* int(sizeof(T)))>
struct alignas(1024) SharedTile {
  using Element = T;
  static constexpr int rows = rows_;
  static constexpr int columns = columns_;
  static constexpr Swizzle swizzle = swizzle_;
  static constexpr int row_bytes = static_cast<int>(swizzle);
  static constexpr int panel_columns = row_bytes / static_cast<int>(sizeof(T));
  static constexpr int panels = columns / panel_columns;
  static constexpr int panel_bytes = rows * row_bytes;
  static constexpr int byte_count = panels * panel_bytes;
  static_assert(columns % panel_columns == 0, "columns must be a multiple of the panel's width");
  static_assert(rows % 8 == 0, "the swizzle pattern has eight rows");

  FLASH3_DEVICE SharedAddress address() const { return shared_address(bytes); }
  FLASH3_DEVICE SharedAddress panel(int index) const { return address() + static_cast<unsigned>(index * panel_bytes); }

  // Where an element lies, in bytes from the tile's start, and as an address.
  FLASH3_HOST_DEVICE static constexpr unsigned offset(int row, int column) {
    const int panel_index = column / panel_columns;
    const int in_panel = row * row_bytes + (column - panel_index * panel_columns) * static_cast<int>(sizeof(T));
    return static_cast<unsigned>(panel_index * panel_bytes) + swizzled<swizzle>(static_cast<unsigned>(in_panel));
  }
  FLASH3_DEVICE SharedAddress address(int row, int column) const { return address() + offset(row, column); }

  // From an element's address to others', for an instruction each. Down by a multiple of eight rows, where the pattern
  // repeats; and right within the panel, by columns whose bits its own column has not: the swizzle is a XOR.
  FLASH3_HOST_DEVICE static constexpr SharedAddress below(SharedAddress element, int rows_down) {
    return element + static_cast<unsigned>(rows_down * row_bytes);
  }
  FLASH3_HOST_DEVICE static constexpr SharedAddress right_of(SharedAddress element, int columns_right) {
    return element ^ static_cast<unsigned>(columns_right * static_cast<int>(sizeof(T)));
  }

  // As wgmma operand whose K runs along a row: A or B^T starting at (row, column). row % 8 == 0, column % 16 == 0.
  FLASH3_DEVICE Descriptor k_major(int row = 0, int column = 0) const {
    return make_descriptor(address() + k_major_offset(row, column), 16, 8 * row_bytes, swizzle);
  }
  FLASH3_HOST_DEVICE static constexpr unsigned k_major_offset(int row, int column) {
    return static_cast<unsigned>((column / panel_columns) * panel_bytes + row * row_bytes +
                                 (column % panel_columns) * static_cast<int>(sizeof(T)));
  }

  // As wgmma operand whose K runs down the rows: B, or A^T, starting at (row, column). row % 8 == 0, column at a panel.
  FLASH3_DEVICE Descriptor mn_major(int row = 0, int column = 0) const {
    return make_descriptor(address() + mn_major_offset(row, column), panel_bytes, 8 * row_bytes, swizzle);
  }
  FLASH3_HOST_DEVICE static constexpr unsigned mn_major_offset(int row, int column) {
    return static_cast<unsigned>((column / panel_columns) * panel_bytes + row * row_bytes);
  }

  unsigned char bytes[byte_count];  // for the room alone
};

}  // namespace flash3::hopper::inline FLASH3_MACHINE
