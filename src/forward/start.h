// The start of each compiled kernel, as launch.cpp calls it.
#pragma once

#include "forward/params.h"
#include "hopper/launch.h"
#include "hopper/types.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

// Enqueues the kernel for these head dimensions, with so many consumer warpgroups and so many keys a step, on `blocks`
// blocks.
template <class T, int head_dim, int head_dim_v, int warpgroups, int block_kv>
hopper::LaunchStatus start(const Params& params, int blocks, hopper::Stream stream);

#define FLASH3_FORWARD(head_dim, head_dim_v, warpgroups, block_kv, k_stages, v_stages, q_stages, reason)       \
  template <>                                                                                                  \
  hopper::LaunchStatus start<hopper::bfloat16, head_dim, head_dim_v, warpgroups, block_kv>(const Params&, int, \
                                                                                           hopper::Stream);    \
  template <>                                                                                                  \
  hopper::LaunchStatus start<hopper::float16, head_dim, head_dim_v, warpgroups, block_kv>(const Params&, int,  \
                                                                                          hopper::Stream);
#include "plan/kernels.def"
#undef FLASH3_FORWARD

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
