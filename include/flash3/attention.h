/// \file
/// Exact attention, forward and backward: arguments, and the functions that compute it.
///
///   out = softmax(softmax_scale * query key^T [softcap] [+ bias] [mask]) value
///
/// The method is FlashAttention-3 (Shah et al., 2024, arXiv 2407.08608) on Hopper GPUs and the same tiled online
/// softmax (Milakov and Gimelshein 2018; Dao et al. 2022) on a CPU. No buffer of size seqlen_q x seqlen_kv exists in
/// either.
#pragma once

#include <cstdint>
#include <optional>

#include "flash3/export.h"
#include "flash3/plan.h"
#include "flash3/tensor.h"

namespace flash3 {

/// Which corner of the score matrix the causal diagonal and the window are aligned to, when seqlen_q != seqlen_kv.
enum class MaskAlignment : std::uint8_t {
  bottom_right,  ///< the last query sees the last key: query i stands at key i + seqlen_kv - seqlen_q
  top_left,      ///< the first query sees the first key: query i stands at key i
};

/// What is computed, apart from tensors.
struct AttentionOptions {
  /// Multiplies query key^T. Default 1 / sqrt(head_dim). Any finite number.
  std::optional<double> softmax_scale;
  /// No query sees a key after its own position.
  bool causal = false;
  MaskAlignment alignment = MaskAlignment::bottom_right;
  /// Sliding window: the query at position p sees keys p - window_left ... p + window_right. Unset: no limit on that
  /// side. `causal` limits window_right to 0.
  std::optional<std::int64_t> window_left;
  std::optional<std::int64_t> window_right;
  /// If positive, scores become softcap * tanh(score / softcap) before bias and mask. 0: off.
  double softcap = 0;
};

/// Tensors of a forward pass. Q, K, V and out share one dtype and one device; every tensor has a contiguous last
/// dimension and otherwise any strides.
///
/// Each side is either a fixed batch, (batch, seqlen, heads, head_dim), or variable length, (total, heads, head_dim)
/// with cumulative lengths. heads_q is a multiple of heads_kv: query head h reads key head h / (heads_q / heads_kv).
/// head_dim and head_dim_v are each 1 to 256 and may differ. With dtype float64 (reference engine only) every tensor
/// said to be float32 below is float64 instead.
struct ForwardArgs {
  ConstTensorView query;  ///< (batch, seqlen_q, heads_q, head_dim) or (total_q, heads_q, head_dim)
  ConstTensorView key;    ///< (batch, seqlen_kv, heads_kv, head_dim) or (total_kv, heads_kv, head_dim)
  ConstTensorView value;  ///< (batch, seqlen_kv, heads_kv, head_dim_v) or (total_kv, heads_kv, head_dim_v)
  /// (batch, seqlen_q, heads_q, head_dim_v) or (total_q, heads_q, head_dim_v). Rows past seqused_q are not written.
  TensorView out;
  /// Natural log of the sum of exp(score) of each row, float32; (batch, heads_q, seqlen_q), or (heads_q, total_q) for
  /// variable length. -inf for a row that sees no key.
  std::optional<TensorView> lse;

  /// int32, (batch + 1): sequence b owns rows cu_seqlens[b] ... cu_seqlens[b + 1] - 1. Starts at 0, never decreases.
  std::optional<ConstTensorView> cu_seqlens_q;
  std::optional<ConstTensorView> cu_seqlens_k;
  /// int32, (batch): how many of a sequence's rows, from its first, are used. Later rows are neither read nor written.
  std::optional<ConstTensorView> seqused_q;
  std::optional<ConstTensorView> seqused_k;
  /// The longest sequence of cu_seqlens, or any number above it. Only needed where cu_seqlens is on a GPU, whose
  /// lengths are not read back: a bound near the truth saves time there, a bound below it leaves rows out. Unset: the
  /// total.
  std::optional<std::int64_t> max_seqlen_q;
  std::optional<std::int64_t> max_seqlen_k;

  /// float32, (heads_q): one logit a head that joins the denominator (and the LSE) of every row that sees a key.
  std::optional<ConstTensorView> sinks;
  /// Added to the scores after scale and softcap. (batch or 1, heads_q or 1, seqlen_q or 1, seqlen_kv), float32 or the
  /// dtype of query. For variable length, seqlen means the longest sequence, and row and column count from a
  /// sequence's start.
  std::optional<ConstTensorView> bias;

  AttentionOptions options;
};

/// Tensors of a backward pass: those of the forward pass, what came out of it, and the gradients.
///
/// d_query, d_key, d_value have the shapes and dtype of query, key, value and are overwritten. Rows past seqused are
/// not written. A row that sees no key contributes nothing.
struct BackwardArgs {
  ConstTensorView query, key, value;
  ConstTensorView out;    ///< of the forward pass
  ConstTensorView lse;    ///< of the forward pass
  ConstTensorView d_out;  ///< gradient of the loss in out; shape and dtype of out
  /// Gradient of the loss in lse; shape of lse, float32. Absent: zero.
  std::optional<ConstTensorView> d_lse;

  TensorView d_query, d_key, d_value;
  std::optional<TensorView> d_sinks;  ///< float32, (heads_q); needs sinks
  /// Shape and dtype of bias; needs bias. Summed over the dimensions that d_bias has one element of. Every element up
  /// to the longest sequence is overwritten, with 0 where no sequence has a visible (query, key) pair.
  std::optional<TensorView> d_bias;

  std::optional<ConstTensorView> cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k;
  std::optional<std::int64_t> max_seqlen_q, max_seqlen_k;
  std::optional<ConstTensorView> sinks, bias;
  AttentionOptions options;
};

/// How it is computed.
struct Execution {
  Engine engine = Engine::automatic;
  /// CPU threads; 0: every core that the process may use. The bits of the result do not depend on it.
  int num_threads = 0;
  /// The CUDA stream (cudaStream_t) that a GPU's work is queued on, of the tensors' device; null: the default stream.
  /// Calls return before the work is done, and never wait for it.
  void* stream = nullptr;
};

/// What forward() would run for these arguments, and why. Checks them as forward() does; reads no tensor data but
/// lengths. \throws InvalidArgument, Unsupported
FLASH3_EXPORT Plan plan_forward(const ForwardArgs& args, const Execution& execution = {});

/// What backward() would run for these arguments, and why.
/// \throws InvalidArgument, Unsupported
FLASH3_EXPORT Plan plan_backward(const BackwardArgs& args, const Execution& execution = {});

/// Computes args.out and, if asked for, args.lse. Safe to call from many threads at once.
///
/// Rows that see no key: out 0, lse -inf. A NaN or inf reaches the rows that see it and no others. The same inputs give
/// the same bits on one engine and machine, whatever the number of threads.
/// \throws InvalidArgument if an argument is refused; nothing has been written then
/// \throws Unsupported if the engine asked for cannot do it; nothing has been written then
/// \throws std::bad_alloc if workspace cannot be had
FLASH3_EXPORT void forward(const ForwardArgs& args, const Execution& execution = {});

/// Computes the gradients of a scalar loss in query, key, value and, if asked for, in sinks and bias.
/// \throws as forward()
FLASH3_EXPORT void backward(const BackwardArgs& args, const Execution& execution = {});

}  // namespace flash3
