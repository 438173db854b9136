// The passes, compiled once for each instruction set and chosen at run time.
#pragma once

#include "core/problem.h"

namespace flash3::cpu {

// Threads must be at least 1.
void run_forward_kernel(const core::ForwardProblem& problem, int threads);
void run_backward_kernel(const core::BackwardProblem& problem, int threads);

// Keys of a block in each pass, and the strips of query rows that the backward pass takes together.
inline constexpr int forward_block_keys = 256;  // a block's weights and its part of V stay in the second-level cache
inline constexpr int backward_block_keys = 128;
inline constexpr int backward_tile_strips = 4;

// What the instruction set in use is, for a person, and how it multiplies.
struct KernelInfo {
  const char* instructions;
  int lanes;
  bool multiplies_bfloat16;
  int strip;  // query rows that are computed together
};
KernelInfo kernel_info();

}  // namespace flash3::cpu
