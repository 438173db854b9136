// Owns memory fences on the emulator.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline void fence_mbarrier_init(Where = Where::current()) { emulator::fence_mbarrier_init(); }
inline void fence_proxy_async(Where = Where::current()) { emulator::fence_proxy_async(); }
inline void fence_proxy_async_all(Where = Where::current()) { emulator::fence_proxy_async(); }
// Global memory is sequentially consistent here.
inline void fence_acq_rel_gpu(Where = Where::current()) {}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
