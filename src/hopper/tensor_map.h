// Owns what a copy by TMA is told: the tensor map, as it is carried into a kernel, and the cache hint.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// What TMA knows of a tensor in global memory and of the box that one copy moves. Opaque: the host makes it
// (make_tensor_map.h) and passes it inside the kernel's FLASH3_GRID_CONSTANT parameter.
struct alignas(128) TensorMap {
  unsigned long long words[16];
};

// What L2 should think of the lines that a copy touches.
enum class CacheHint : unsigned long long {
  evict_normal = 0x1000000000000000ull,
  evict_first = 0x12f0000000000000ull,
  evict_last = 0x14f0000000000000ull,
};

}  // namespace flash3::hopper::inline FLASH3_MACHINE
