// The Hopper kernels as an engine: whether they can run a problem here, what would run, and the launch.
#pragma once

#include <optional>
#include <string>

#include "core/problem.h"
#include "plan/forward_plan.h"

namespace flash3::forward_kernels {

// Why not; nothing if they can.
std::optional<std::string> refusal(const core::ForwardProblem& problem);

// For a problem that is not refused.
plan::ForwardPlan plan_for(const core::ForwardProblem& problem);

// Queues the work on `stream` (a cudaStream_t) of the problem's device and returns.
void forward(const core::ForwardProblem& problem, void* stream);

}  // namespace flash3::forward_kernels
