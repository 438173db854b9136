// Owns ldmatrix and stmatrix: 8x8 matrices of two-byte elements between shared memory and a warp's registers. Lane
// 8i + r gives the address of row r of matrix i, 16 bytes aligned; register i of lane l holds row l / 4, columns
// 2 (l % 4) and the next (transposed: of the transposed matrix).
#pragma once

#include "hopper/shared.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16 {d0, d1, d2, d3}, [row];
template <bool transposed = false>
FLASH3_DEVICE void ldmatrix_x4(SharedAddress row, unsigned (&d)[4], Where = Where::current()) {
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row)
                 : "memory");
  }
}

// stmatrix.sync.aligned.m8n8.x4[.trans].shared.b16 [row], {s0, s1, s2, s3};
template <bool transposed = false>
FLASH3_DEVICE void stmatrix_x4(SharedAddress row, const unsigned (&s)[4], Where = Where::current()) {
  if constexpr (transposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(row), "r"(s[0]), "r"(s[1]), "r"(s[2]), "r"(s[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(row), "r"(s[0]), "r"(s[1]), "r"(s[2]), "r"(s[3])
                 : "memory");
  }
}

// stmatrix.sync.aligned.m8n8.x2.shared.b16 [row], {s0, s1};  Lanes 16 to 31 give no address.
FLASH3_DEVICE void stmatrix_x2(SharedAddress row, const unsigned (&s)[2], Where = Where::current()) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};"
               :
               : "r"(row), "r"(s[0]), "r"(s[1])
               : "memory");
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
