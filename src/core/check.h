// The border: arguments as a user gives them become a Problem, or an error in the user's words.
#pragma once

#include "core/merge_problem.h"
#include "core/problem.h"

namespace flash3::core {

// Throw InvalidArgument or return a problem that every engine may trust: ranks, shapes, dtypes, devices, strides,
// lengths and overlaps are checked. Lengths on a GPU cannot be read here and are not checked.
ForwardProblem check(const ForwardArgs& args);
BackwardProblem check(const BackwardArgs& args);
MergeProblem check(const MergeArgs& args);
MergeBackwardProblem check(const MergeBackwardArgs& args);

// Whether two views share a byte. Interleaved views of one buffer (a packed query-key-value tensor, say) do not.
bool overlap(const ConstTensorView& a, const ConstTensorView& b);

// Whether two elements of one view may share a byte, as in an expanded tensor.
bool overlaps_itself(const ConstTensorView& view);

}  // namespace flash3::core
