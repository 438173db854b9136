// Owns how device code is spelled on the emulator: function and kernel macros, and who the calling thread is.
#pragma once

#include "emulator/instructions.h"
#include "hopper/types.h"

// The namespace that holds everything compiled for this machine, so that one program can hold both builds.
#define FLASH3_MACHINE on_emulator

#define FLASH3_DEVICE inline
#define FLASH3_HOST_DEVICE inline
#define FLASH3_KERNEL(threads, blocks_per_sm) void
#define FLASH3_GRID_CONSTANT(Type) const Type
#define FLASH3_UNROLL
#define FLASH3_NO_UNROLL

namespace flash3::hopper::inline FLASH3_MACHINE {

using Where = emulator::Where;

inline int thread_index() { return emulator::thread_index(); }
inline int lane_index() { return emulator::thread_index() % 32; }
inline int warp_index() { return emulator::thread_index() / 32; }
inline int warpgroup_index() { return emulator::thread_index() / 128; }

inline int block_threads() { return emulator::place().block_threads; }
inline int block_x() { return emulator::place().block[0]; }
inline int block_y() { return emulator::place().block[1]; }
inline int block_z() { return emulator::place().block[2]; }
inline int grid_x() { return emulator::place().grid[0]; }
inline int grid_y() { return emulator::place().grid[1]; }
inline int grid_z() { return emulator::place().grid[2]; }

inline int opaque(int x) { return x; }

[[noreturn]] inline void trap(Where where = Where::current()) { emulator::trap(where); }

}  // namespace flash3::hopper::inline FLASH3_MACHINE
