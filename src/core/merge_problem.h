// The normalised merge: what the combine room reads. Made and checked once, by check.h.
#pragma once

#include "core/problem.h"
#include "flash3/merge.h"

namespace flash3::core {

// A tensor of parts; the strides as in BasicOperand.
template <class Pointer>
struct BasicPartsOperand : BasicOperand<Pointer> {
  std::int64_t part_stride = 0;
};
using PartsOperand = BasicPartsOperand<const void*>;
using MutablePartsOperand = BasicPartsOperand<void*>;

// Variable length is one sequence of all rows. Row statistics (every lse) are float32, or float64 where dtype is.
struct MergeShape {
  DType dtype = DType::float32;  // of out and d_out
  Device device{};
  std::int64_t parts = 0, batch = 0, seqlen = 0, heads = 0, head_dim = 0;
  PartsOperand parts_out, parts_lse;  // every lse has seq_stride 1
};

struct MergeProblem : MergeShape {
  MutableOperand out;
  MutableOperand lse;  // null if not asked for
};

struct MergeBackwardProblem : MergeShape {
  Operand d_out;
  Operand d_lse;  // null: zero
  MutablePartsOperand d_parts_out, d_parts_lse;
};

}  // namespace flash3::core
