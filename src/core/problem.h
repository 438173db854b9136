// The normalised problem: what every engine reads. Made and checked once, by check.h.
#pragma once

#include <cstdint>
#include <string>

#include "core/mask.h"
#include "flash3/attention.h"

namespace flash3::core {

// The largest head_dim and head_dim_v.
inline constexpr std::int64_t max_head_dim = 256;

// A checked tensor with its dimensions named. Strides count elements; the last dimension is contiguous. A stride of a
// dimension that a tensor lacks (batch, for variable length) or broadcasts is 0. Data is null if the tensor is absent.
template <class Pointer>
struct BasicOperand {
  Pointer data = nullptr;
  DType dtype = DType::float32;
  std::int64_t batch_stride = 0;
  std::int64_t seq_stride = 0;
  std::int64_t head_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};
using Operand = BasicOperand<const void*>;
using MutableOperand = BasicOperand<void*>;

// One sequence of the batch. Row i of the sequence is row `q_row + i` of batch entry `q_batch` of query, out and lse.
struct Sequence {
  std::int64_t q_batch = 0, q_row = 0, seqlen_q = 0;
  std::int64_t kv_batch = 0, kv_row = 0, seqlen_kv = 0;
  Band band{};

  // Offset in elements of row i (counted from the sequence's first) of a head.
  template <class P>
  std::int64_t q_offset(const BasicOperand<P>& t, std::int64_t head, std::int64_t i = 0) const {
    return q_batch * t.batch_stride + (q_row + i) * t.seq_stride + head * t.head_stride;
  }
  template <class P>
  std::int64_t kv_offset(const BasicOperand<P>& t, std::int64_t head, std::int64_t j = 0) const {
    return kv_batch * t.batch_stride + (kv_row + j) * t.seq_stride + head * t.head_stride;
  }
};

// What forward and backward share: device, shapes, options, inputs. Row statistics (lse, d_lse, sinks, d_sinks) are
// float32, or float64 where dtype is.
struct Problem {
  DType dtype = DType::float32;
  Device device{};
  std::int64_t batch = 0;
  std::int64_t heads_q = 0, heads_kv = 0;
  std::int64_t head_dim = 0, head_dim_v = 0;
  // The longest a sequence can be: the tensor's seqlen, or the longest of cu_seqlens (seqused not counted). Of
  // cu_seqlens on a GPU, what the caller says, else the total.
  std::int64_t max_seqlen_q = 0, max_seqlen_kv = 0;
  // Rows of the tensors: seqlen, or all sequences' together.
  std::int64_t rows_q = 0, rows_kv = 0;

  double softmax_scale = 1;
  double softcap = 0;
  std::int64_t window_left = unlimited, window_right = unlimited;
  bool bottom_right = true;

  Operand query, key, value;
  Operand bias;   // batch, seq, head strides are 0 where it broadcasts; keys contiguous
  Operand sinks;  // one logit a query head, contiguous
  const std::int32_t* cu_seqlens_q = nullptr;
  const std::int32_t* cu_seqlens_k = nullptr;
  const std::int32_t* seqused_q = nullptr;
  const std::int32_t* seqused_k = nullptr;

  std::int64_t group() const { return heads_q / heads_kv; }  // query heads that share a key head

  Sequence sequence(std::int64_t b) const {
    Sequence s;
    s.q_batch = cu_seqlens_q ? 0 : b;
    s.q_row = cu_seqlens_q ? cu_seqlens_q[b] : 0;
    s.seqlen_q = cu_seqlens_q ? cu_seqlens_q[b + 1] - s.q_row : max_seqlen_q;
    if (seqused_q) s.seqlen_q = seqused_q[b];
    s.kv_batch = cu_seqlens_k ? 0 : b;
    s.kv_row = cu_seqlens_k ? cu_seqlens_k[b] : 0;
    s.seqlen_kv = cu_seqlens_k ? cu_seqlens_k[b + 1] - s.kv_row : max_seqlen_kv;
    if (seqused_k) s.seqlen_kv = seqused_k[b];
    s.band = make_band(window_left, window_right, bottom_right, s.seqlen_q, s.seqlen_kv);
    return s;
  }

  // bias(b, head, i, j) stands at this offset + j; b counts sequences, i rows from the sequence's start.
  std::int64_t bias_offset(std::int64_t b, std::int64_t head, std::int64_t i) const {
    return b * bias.batch_stride + head * bias.head_stride + i * bias.seq_stride;
  }

  // Whether the lengths can be read here.
  bool lengths_on_gpu() const {
    return device.type == DeviceType::cuda && (cu_seqlens_q || cu_seqlens_k || seqused_q || seqused_k);
  }

  // Operations of one matrix product of head_dim `dim` over the visible pairs; 0 if lengths_on_gpu().
  double matmul_flops(std::int64_t dim) const;

  // One line for a person.
  std::string to_string() const;
};

struct ForwardProblem : Problem {
  MutableOperand out;
  MutableOperand lse;  // seq_stride 1; null if not asked for

  double flops() const { return matmul_flops(head_dim) + matmul_flops(head_dim_v); }
};

struct BackwardProblem : Problem {
  Operand out, lse, d_out;
  Operand d_lse;  // null: zero
  MutableOperand d_query, d_key, d_value;
  MutableOperand d_bias;   // strides as bias; null if not asked for
  MutableOperand d_sinks;  // null if not asked for

  double flops() const { return 3 * matmul_flops(head_dim) + 2 * matmul_flops(head_dim_v); }
};

}  // namespace flash3::core
