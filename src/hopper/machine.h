// Owns how device code is spelled: function and kernel macros, source locations, and who the calling thread is.
#pragma once

#include "hopper/types.h"

// The namespace that holds everything compiled for this machine, so that one program can hold both builds.
#define FLASH3_MACHINE on_cuda

#ifdef __CUDACC__
#define FLASH3_DEVICE __device__ __forceinline__
#define FLASH3_HOST_DEVICE __host__ __device__ __forceinline__
#else  // host sources that make tensor maps
#define FLASH3_HOST_DEVICE inline
#endif
#define FLASH3_KERNEL(threads, blocks_per_sm) __global__ void __launch_bounds__(threads, blocks_per_sm)
#define FLASH3_GRID_CONSTANT(Type) const __grid_constant__ Type
#define FLASH3_UNROLL _Pragma("unroll")
#define FLASH3_NO_UNROLL _Pragma("unroll 1")

namespace flash3::hopper::inline FLASH3_MACHINE {

// The line of a kernel that calls a room function. Empty here; the emulator's holds file and line for its reports.
struct Where {
  FLASH3_HOST_DEVICE static constexpr Where current() { return {}; }
};

#ifdef __CUDACC__

FLASH3_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FLASH3_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % 32; }

// The warp's index in its block, as a value that the compiler knows to be the same in all lanes.
FLASH3_DEVICE int warp_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0); }
FLASH3_DEVICE int warpgroup_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0); }

FLASH3_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
FLASH3_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
FLASH3_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
FLASH3_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
FLASH3_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
FLASH3_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
FLASH3_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }

// The same number, of unknown origin: what is computed from it is computed here, and not held in registers since
// earlier.
FLASH3_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Stops the kernel with an error. For states that cannot be.
[[noreturn]] FLASH3_DEVICE void trap(Where = Where::current()) {
  asm volatile("trap;");
  __builtin_unreachable();
}

#endif

}  // namespace flash3::hopper::inline FLASH3_MACHINE
