// Owns the swizzle: how 16-byte chunks of a shared-memory tile are permuted so that rows and columns both read without
// bank conflicts. TMA writes it, wgmma reads it, threads compute it.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// The value is the bytes of one row of a panel: the pattern repeats every eight rows.
enum class Swizzle : int { none = 16, b32 = 32, b64 = 64, b128 = 128 };

// Permutes a byte offset from a place where the pattern starts (8 x swizzle bytes aligned), or an address.
template <Swizzle swizzle>
FLASH3_HOST_DEVICE constexpr unsigned swizzled(unsigned offset) {
  if constexpr (swizzle == Swizzle::none) return offset;
  constexpr unsigned mask = static_cast<unsigned>(swizzle) - 16u;  // chunk bits: 0x70, 0x30, 0x10
  return offset ^ ((offset >> 3) & mask);
}

// The widest swizzle whose panels tile a row of `bytes` bytes.
FLASH3_HOST_DEVICE constexpr Swizzle widest_swizzle(int bytes) {
  return bytes % 128 == 0 ? Swizzle::b128 : bytes % 64 == 0 ? Swizzle::b64 : Swizzle::b32;
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
