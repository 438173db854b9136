// Owns memory fences.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// fence.mbarrier_init.release.cluster;  Makes this thread's mbarrier_init visible to the cluster and to TMA. A block
// or cluster barrier must still follow.
FLASH3_DEVICE void fence_mbarrier_init(Where = Where::current()) {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}

// fence.proxy.async.shared::cta;  Makes this thread's ordinary writes to shared memory visible to TMA and wgmma. Every
// thread that wrote executes it, after its writes and before the barrier that hands the data over.
FLASH3_DEVICE void fence_proxy_async(Where = Where::current()) {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// fence.proxy.async;  The same for shared and global memory.
FLASH3_DEVICE void fence_proxy_async_all(Where = Where::current()) {
  asm volatile("fence.proxy.async;" : : : "memory");
}

// fence.acq_rel.gpu;  Orders this thread's memory accesses for the whole GPU.
FLASH3_DEVICE void fence_acq_rel_gpu(Where = Where::current()) { asm volatile("fence.acq_rel.gpu;" : : : "memory"); }

}  // namespace flash3::hopper::inline FLASH3_MACHINE
