// The CPU engine's doors: tiled online softmax, forward and backward, on every core.
#pragma once

#include <optional>
#include <string>

#include "core/problem.h"

namespace flash3::cpu {

// Why this engine cannot run the problem; nothing if it can.
std::optional<std::string> refusal(const core::Problem& problem);

// Threads that the engine would use for the problem, given the caller's wish (0: every core that the process may use).
int threads_for(const core::ForwardProblem& problem, int num_threads);
int threads_for(const core::BackwardProblem& problem, int num_threads);

// Instruction set and tiles in one line, for the plan.
std::string describe(const core::ForwardProblem& problem);
std::string describe(const core::BackwardProblem& problem);

// The problem must be one that refusal() lets through. Throws std::bad_alloc if workspace cannot be had.
void forward(const core::ForwardProblem& problem, int num_threads);
void backward(const core::BackwardProblem& problem, int num_threads);

}  // namespace flash3::cpu
