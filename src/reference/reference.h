// The specification: naive attention in float64, forward and backward, one row at a time, written to be read.
#pragma once

#include <optional>
#include <string>

#include "core/problem.h"

namespace flash3::reference {

// Why the reference cannot run the problem (a GPU tensor, say); nothing if it can.
std::optional<std::string> refusal(const core::Problem& problem);

// Threads that would be used, given the caller's wish (0: every core).
int threads_for(const core::ForwardProblem& problem, int num_threads);
int threads_for(const core::BackwardProblem& problem, int num_threads);

// Every product and sum is float64; only what is stored is rounded, once, to the dtype of its tensor. Memory grows with
// seqlen. The bits do not depend on num_threads.
void forward(const core::ForwardProblem& problem, int num_threads = 0);

// Takes out and lse as they are given: P is exp(score - lse). For gradients free of the rounding of a 16-bit out, give
// it float64 tensors.
void backward(const core::BackwardProblem& problem, int num_threads = 0);

}  // namespace flash3::reference
