// Owns ldmatrix and stmatrix on the emulator.
#pragma once

#include "hopper/shared.h"
#include "hopper/warp.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// Matrix i's row r is at the address that lane 8i + r gives; a lane holds the two elements of row lane / 4, columns
// 2 (lane % 4) and the next, or of that column and those rows if transposed.
template <bool transposed, int count>
void load_matrices(SharedAddress row, unsigned (&d)[count], Where where) {
  const emulator::Words rows = emulator::exchange(row, "ldmatrix", where);
  const int lane = lane_index();
  for (int i = 0; i < count; ++i) {
    d[i] = 0;
    for (int e = 0; e < 2; ++e) {
      const int r = transposed ? lane % 4 * 2 + e : lane / 4;
      const int c = transposed ? lane / 4 : lane % 4 * 2 + e;
      const auto address = static_cast<SharedAddress>(rows.lane[8 * i + r]);
      if (address % 16 != 0) emulator::misaligned_row(where);
      d[i] |= static_cast<unsigned>(load_shared_2(address + static_cast<unsigned>(c) * 2, where)) << (16 * e);
    }
  }
}

template <bool transposed, int count>
void store_matrices(SharedAddress row, const unsigned (&s)[count], Where where) {
  const emulator::Words rows = emulator::exchange(row, "stmatrix", where);
  const int lane = lane_index();
  for (int i = 0; i < count; ++i) {
    for (int e = 0; e < 2; ++e) {
      const int r = transposed ? lane % 4 * 2 + e : lane / 4;
      const int c = transposed ? lane / 4 : lane % 4 * 2 + e;
      const auto address = static_cast<SharedAddress>(rows.lane[8 * i + r]);
      if (address % 16 != 0) emulator::misaligned_row(where);
      store_shared_2(address + static_cast<unsigned>(c) * 2, static_cast<unsigned short>(s[i] >> (16 * e)), where);
    }
  }
}

template <bool transposed = false>
void ldmatrix_x4(SharedAddress row, unsigned (&d)[4], Where where = Where::current()) {
  load_matrices<transposed>(row, d, where);
}
template <bool transposed = false>
void stmatrix_x4(SharedAddress row, const unsigned (&s)[4], Where where = Where::current()) {
  store_matrices<transposed>(row, s, where);
}
inline void stmatrix_x2(SharedAddress row, const unsigned (&s)[2], Where where = Where::current()) {
  store_matrices<false>(row, s, where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
