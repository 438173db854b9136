// Timing the forward kernel with one of its techniques switched off, on a GPU: ablate.cpp asks, ablate_gpu.cpp
// measures.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "flash3/attention.h"

namespace flash3::tools {

struct AblationProblem {
  std::int64_t batch = 4, seqlen = 8448, heads = 16;
  bool causal = false;
  int runs = 20;
};

// Which technique a diagnostic build leaves out: the value of the environment variable that its kernels read.
inline constexpr const char* ablation_variable = "FLASH3_ABLATE";

// Median seconds of a forward pass in float16 with head_dim 128 for each value of the variable ("" for the whole
// kernel), in turns, L2 flushed before each. Throws RuntimeFailure.
std::vector<double> time_ablations(const AblationProblem& problem, const std::vector<std::string>& values);

}  // namespace flash3::tools
