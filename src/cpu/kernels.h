// The passes, compiled once for each instruction set and chosen at run time.
#pragma once

#include "core/problem.h"

namespace flash3::cpu {

// Threads must be at least 1.
void run_forward_kernel(const core::ForwardProblem& problem, int threads);
void run_backward_kernel(const core::BackwardProblem& problem, int threads);

// How a problem of some dtype is computed by the instruction set in use.
struct KernelInfo {
  const char* instructions;  // these two are for a person
  const char* products;
  int strip;  // query rows that are computed together
  int forward_keys;
  int backward_rows, backward_keys;
};
KernelInfo kernel_info(DType dtype);

}  // namespace flash3::cpu
