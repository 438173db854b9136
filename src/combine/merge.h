// Merging partial results through their log-sum-exp, forward and backward, on the CPU.
#pragma once

#include <optional>
#include <string>

#include "core/merge_problem.h"

namespace flash3::combine {

// Why this room cannot run the problem; nothing if it can.
std::optional<std::string> refusal(const core::MergeShape& problem);

// The problem must be one that refusal() lets through. num_threads 0: every core.
void merge(const core::MergeProblem& problem, int num_threads);
void merge_backward(const core::MergeBackwardProblem& problem, int num_threads);

}  // namespace flash3::combine
