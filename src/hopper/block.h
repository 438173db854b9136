// Owns what the warps of a block do together: barriers and the register budget.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// bar.sync 0;  All threads of the block.
FLASH3_DEVICE void sync_block(Where = Where::current()) { __syncthreads(); }

// bar.sync id, threads;  Waits until `threads` threads (a multiple of 32, whole warps) have come to barrier `id`, by
// sync or arrive. id 1 to 15: 0 is sync_block's.
FLASH3_DEVICE void named_barrier_sync(int id, int threads, Where = Where::current()) {
  asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// bar.arrive id, threads;  Counts this warp in without waiting.
FLASH3_DEVICE void named_barrier_arrive(int id, int threads, Where = Where::current()) {
  asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// setmaxnreg.inc.sync.aligned.u32 registers;  All warps of a warpgroup; waits until that many a thread are free.
template <int registers>
FLASH3_DEVICE void setmaxnreg_inc(Where = Where::current()) {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(registers));
}

// setmaxnreg.dec.sync.aligned.u32 registers;  All warps of a warpgroup; gives the rest back.
template <int registers>
FLASH3_DEVICE void setmaxnreg_dec(Where = Where::current()) {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(registers));
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
