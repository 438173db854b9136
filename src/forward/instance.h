// One compiled kernel and how it is started. Each line of kernels.def is compiled in a translation unit of its own,
// once for each dtype: that file includes this one and says FLASH3_FORWARD_INSTANCE(dtype, head_dim, head_dim_v,
// warpgroups, block_kv).
#pragma once

#include "forward/kernel.h"
#include "forward/start.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

template <class C>
hopper::LaunchStatus start_kernel(void (*kernel)(Params), const Params& params, int blocks, hopper::Stream stream) {
  static_assert(sizeof(Shared<C>) <= static_cast<std::size_t>(C::tile.shared_bytes()));
  hopper::LaunchShape shape;
  shape.grid[0] = blocks;
  shape.threads = C::threads;
  shape.shared_bytes = sizeof(Shared<C>);
  shape.stream = stream;
  return hopper::launch(kernel, shape, params);
}

template <class C>
hopper::LaunchStatus start_whole(const Params& params, int blocks, hopper::Stream stream) {
  return start_kernel<C>(forward_kernel<C>, params, blocks, stream);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE

// What launch.cpp calls for this kernel is start_by<its Config>.
#define FLASH3_INSTANCE_BY(start_by, T, head_dim, head_dim_v, warpgroups, block_kv)                                   \
  namespace flash3::forward_kernels::inline FLASH3_MACHINE {                                                          \
  template <>                                                                                                         \
  hopper::LaunchStatus start<hopper::T, head_dim, head_dim_v, warpgroups, block_kv>(const Params& params, int blocks, \
                                                                                    hopper::Stream stream) {          \
    return start_by<Config<hopper::T, head_dim, head_dim_v, warpgroups, block_kv>>(params, blocks, stream);           \
  }                                                                                                                   \
  }
#define FLASH3_FORWARD_INSTANCE(T, head_dim, head_dim_v, warpgroups, block_kv) \
  FLASH3_INSTANCE_BY(start_whole, T, head_dim, head_dim_v, warpgroups, block_kv)
