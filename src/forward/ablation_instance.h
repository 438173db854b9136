// One compiled kernel of a diagnostic build: which technique a launch leaves out is what FLASH3_ABLATE says in the
// environment. Stands in for FLASH3_FORWARD_INSTANCE.
#pragma once

#include <cstdlib>
#include <string_view>

#include "forward/ablation.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

template <class C>
hopper::LaunchStatus start_as_wished(const Params& params, int blocks, hopper::Stream stream) {
  const char* wish = std::getenv("FLASH3_ABLATE");
  const std::string_view off = wish == nullptr ? "" : wish;
  if (off == "tiles") return start_ablated<Ablated<C, Techniques{}>>(params, blocks, stream);
  if (off == "specialisation") {
    return start_ablated<Ablated<C, Techniques{.specialised = false}>>(params, blocks, stream);
  }
  if (off == "pipelining") return start_ablated<Ablated<C, Techniques{.pipelined = false}>>(params, blocks, stream);
  if (off == "overlap") return start_ablated<Ablated<C, Techniques{.overlapping = false}>>(params, blocks, stream);
  if (!off.empty()) return {"FLASH3_ABLATE: accepted are tiles, specialisation, pipelining, overlap"};
  return start_whole<C>(params, blocks, stream);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE

#define FLASH3_ABLATION_INSTANCE(T, head_dim, head_dim_v, warpgroups, block_kv) \
  FLASH3_INSTANCE_BY(start_as_wished, T, head_dim, head_dim_v, warpgroups, block_kv)
