// Owns the 64-bit matrix descriptor by which wgmma finds an operand in shared memory.
#pragma once

#include "hopper/shared.h"
#include "hopper/swizzle.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// Bits 0-13 start address, 16-29 leading byte offset, 32-45 stride byte offset (each >> 4), 49-51 base offset (0: the
// pattern starts at a multiple of 8 x swizzle bytes), 62-63 swizzle.
using Descriptor = unsigned long long;

// Which index of a 64 x K or K x N operand is contiguous in memory: K, or M (of A) or N (of B).
enum class Major : int { k = 0, mn = 1 };

FLASH3_DEVICE constexpr Descriptor make_descriptor(SharedAddress start, unsigned leading_bytes, unsigned stride_bytes,
                                                   Swizzle swizzle) {
  const Descriptor code = swizzle == Swizzle::b128 ? 1 : swizzle == Swizzle::b64 ? 2 : swizzle == Swizzle::b32 ? 3 : 0;
  // 0x3ffff drops the block's rank, which addresses carry in a cluster.
  return static_cast<Descriptor>((start & 0x3ffffu) >> 4) | static_cast<Descriptor>(leading_bytes >> 4) << 16 |
         static_cast<Descriptor>(stride_bytes >> 4) << 32 | code << 62;
}

// The same operand, `bytes` further on: as an addition, so that one descriptor serves a whole tile.
FLASH3_DEVICE constexpr Descriptor advance(Descriptor descriptor, unsigned bytes) { return descriptor + (bytes >> 4); }

}  // namespace flash3::hopper::inline FLASH3_MACHINE
