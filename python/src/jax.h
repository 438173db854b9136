// The handlers that XLA calls for flash3.jax: one each for arrays in CPU memory and on a CUDA GPU.
#pragma once

#include "xla_ffi.h"

namespace flash3::python {

// Arguments: query, key, value, then those of cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, sinks, bias that the
// attribute `present` has a bit for. Results: out, lse, which arrive filled where rows may belong to no sequence.
xla::Error* jax_forward(xla::CallFrame* frame);
xla::Error* jax_forward_gpu(xla::CallFrame* frame);

// Arguments: d_out, d_lse, out, lse, and those of the forward. Results: d_query, d_key, d_value, then d_sinks and
// d_bias where sinks and bias are present.
xla::Error* jax_backward(xla::CallFrame* frame);
xla::Error* jax_backward_gpu(xla::CallFrame* frame);

}  // namespace flash3::python
