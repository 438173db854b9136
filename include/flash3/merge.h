/// \file
/// Merging partial results: attention of the same queries over disjoint sets of keys, through its log-sum-exp.
///
/// With key blocks computed apart (on other machines, at other times, from other caches), each by forward() with an
/// lse,
///
///   lse = log sum_p exp(parts_lse[p])          out = sum_p exp(parts_lse[p] - lse) parts_out[p]
///
/// is what one forward() over all the keys would have given. merge_backward() gives the gradients of every part's out
/// and lse, which backward() takes as d_out and d_lse, so that merged results can be trained through.
#pragma once

#include <optional>

#include "flash3/attention.h"
#include "flash3/export.h"
#include "flash3/tensor.h"

namespace flash3 {

/// Tensors of a merge. There are one or more parts; every tensor has a contiguous last dimension and otherwise any
/// strides (inputs may be expanded).
///
/// dtypes: out is float32, float16, bfloat16 or float64; parts_out has the dtype of out, or float32. parts_lse and lse
/// are float32, or float64 where out is. In variable length (batch, seqlen) is one dimension, the total: the shapes are
/// those that forward() gives, with the parts before them.
///
/// A part whose lse is -inf (it saw no key) has weight 0, and its out is not read. Where all parts are empty, out is 0
/// and lse -inf. A NaN in another part reaches the row that it is in. Attention sinks belong to one part only.
struct MergeArgs {
  /// (parts, batch, seqlen, heads, head_dim_v) or (parts, total, heads, head_dim_v). head_dim_v is 1 to 256.
  ConstTensorView parts_out;
  ConstTensorView parts_lse;      ///< (parts, batch, heads, seqlen) or (parts, heads, total)
  TensorView out;                 ///< (batch, seqlen, heads, head_dim_v) or (total, heads, head_dim_v)
  std::optional<TensorView> lse;  ///< (batch, heads, seqlen) or (heads, total)
};

/// Tensors of the gradients of a merge: what went in, and the gradients, which are overwritten. The gradients of an
/// empty part are 0.
struct MergeBackwardArgs {
  ConstTensorView parts_out, parts_lse;  ///< as given to merge()
  ConstTensorView d_out;                 ///< gradient of the loss in out; shape and dtype of out
  std::optional<ConstTensorView> d_lse;  ///< gradient of the loss in lse; shape and dtype of lse. Absent: zero
  TensorView d_parts_out;                ///< shape and dtype of parts_out
  TensorView d_parts_lse;                ///< shape and dtype of parts_lse
};

/// Computes args.out and, if asked for, args.lse. Runs on the CPU; execution.engine is automatic or cpu. The bits of
/// the result do not depend on the number of threads. \throws InvalidArgument if an argument is refused; nothing has
/// been written then \throws Unsupported for other engines and for tensors that are not in CPU memory; nothing has been
/// written then
FLASH3_EXPORT void merge(const MergeArgs& args, const Execution& execution = {});

/// Computes the gradients of a scalar loss in every part's out and lse.
/// \throws as merge()
FLASH3_EXPORT void merge_backward(const MergeBackwardArgs& args, const Execution& execution = {});

}  // namespace flash3
