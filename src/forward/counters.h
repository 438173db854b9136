// The tile counters of a device: one for each stream, and one for each launch that is captured into a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <mutex>
#include <unordered_map>

#include "forward/params.h"

namespace flash3::forward_kernels {

// Launches of one stream follow each other, so they can share a counter; a captured launch runs whenever its graph
// does, so it gets one that nobody else ever gets. Memory is taken in chunks and kept for the life of the process: 8
// bytes a stream or captured launch.
class Counters {
 public:
  // For a launch on `stream` of the current device, which must be the one that this object stands for.
  TileCounter* of(cudaStream_t stream);

 private:
  TileCounter* fresh();

  std::mutex mutex_;
  std::unordered_map<unsigned long long, TileCounter*> of_stream_;
  TileCounter* chunk_ = nullptr;
  std::size_t left_ = 0;
};

}  // namespace flash3::forward_kernels
