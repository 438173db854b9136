// Owns the start of a kernel from the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

using Stream = cudaStream_t;

struct LaunchShape {
  int grid[3] = {1, 1, 1};
  int threads = 0;
  int cluster = 1;               // blocks a cluster, along x
  std::size_t shared_bytes = 0;  // sizeof of the kernel's shared struct
  Stream stream = nullptr;
  bool dependent = false;  // may start before the grid before it in the stream has ended: see grid.h
};

// Empty on success; else what the driver said.
struct LaunchStatus {
  const char* error = nullptr;
  explicit operator bool() const { return error == nullptr; }
};

// Enqueues kernel(params) on the stream and returns.
template <class Params>
[[nodiscard]] LaunchStatus launch(void (*kernel)(Params), const LaunchShape& shape, const Params& params) {
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return {cudaGetErrorString(error)};
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (shape.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.grid[0]), static_cast<unsigned>(shape.grid[1]),
                        static_cast<unsigned>(shape.grid[2]));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  void* arguments[] = {const_cast<Params*>(&params)};
  const cudaError_t error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
  return error == cudaSuccess ? LaunchStatus{} : LaunchStatus{cudaGetErrorString(error)};
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
