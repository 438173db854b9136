// Filling the kernel's parameters: tensor maps, addresses, mask, scale.
#include "forward/launch.h"

#include <bit>
#include <numbers>

#include "forward/start.h"
#include "hopper/make_tensor_map.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {
namespace {

void require(const std::string& error) {
  if (!error.empty()) throw DeviceError(error);
}

template <class Pointer>
Address<Pointer> address_of(const core::BasicOperand<Pointer>& t) {
  return {t.data, t.batch_stride, t.seq_stride, t.head_stride};
}

template <class Pointer>
hopper::AttentionTensor tensor_of(const core::BasicOperand<Pointer>& t, std::int64_t batch, std::int64_t rows,
                                  std::int64_t heads, std::int64_t head_dim) {
  return {t.data,         t.dtype == DType::bfloat16 ? hopper::ElementType::bfloat16 : hopper::ElementType::float16,
          batch,          rows,
          heads,          head_dim,
          t.batch_stride, t.seq_stride,
          t.head_stride};
}

void make_maps(const core::ForwardProblem& problem, const plan::ForwardPlan& plan, Params& params) {
  const plan::ForwardTile& tile = plan.tile;
  const auto q_swizzle = hopper::widest_swizzle(tile.head_dim * 2);
  const auto v_swizzle = hopper::Swizzle::b128;
  const int q_columns = static_cast<int>(q_swizzle) / 2, v_columns = static_cast<int>(v_swizzle) / 2;
  const std::int64_t q_batch = problem.cu_seqlens_q ? 1 : problem.batch;
  require(
      make_packed_attention_map(tensor_of(problem.query, q_batch, problem.rows_q, problem.heads_q, problem.head_dim),
                                plan.group, q_columns, 64, q_swizzle, params.query));

  require(make_packed_attention_map(
      tensor_of(problem.out, q_batch, problem.rows_q, problem.heads_q, problem.head_dim_v), plan.group,
      tile.out_columns(), 16, hopper::widest_swizzle(tile.out_columns() * 2), params.out));
  params.out_by_tma = problem.head_dim_v % 8 == 0;
  params.out_ends_with_tensor = problem.cu_seqlens_q == nullptr && problem.seqused_q == nullptr;

  hopper::AttentionTensor key = tensor_of(problem.key, problem.cu_seqlens_k ? 1 : problem.batch, problem.rows_kv,
                                          problem.heads_kv, problem.head_dim);
  hopper::AttentionTensor value = key;
  value.base = problem.value.data;
  value.head_dim = problem.head_dim_v;
  value.batch_stride = problem.value.batch_stride;
  value.row_stride = problem.value.seq_stride;
  value.head_stride = problem.value.head_stride;
  if (problem.rows_kv == 0) {
    // A map of nothing cannot be made, and no key will be visible: any mapped row will do.
    key.base = value.base = problem.query.data;
    key.batch = value.batch = key.seqlen = value.seqlen = key.heads = value.heads = 1;
    key.head_dim = value.head_dim = problem.head_dim;
  }
  require(make_attention_map(key, q_columns, tile.block_kv, q_swizzle, params.key));
  require(make_attention_map(value, v_columns, tile.block_kv, v_swizzle, params.value));
  require(make_attention_map(value, v_columns, 8, v_swizzle, params.value_rows_8));
  require(make_attention_map(value, v_columns, 1, v_swizzle, params.value_rows_1));
  params.rows_kv = static_cast<int>(value.seqlen);
}

void set_scale(const core::ForwardProblem& problem, Params& params) {
  const double exponent = problem.softmax_scale * std::numbers::log2e;
  if (problem.softcap > 0) {
    params.transform = Transform::softcap;
    params.transform_factor = static_cast<float>(2 * exponent / problem.softcap);
    params.softcap_factor = static_cast<float>(problem.softcap * std::numbers::log2e);
  } else if (!(exponent > 0)) {
    params.transform = Transform::scale;
    params.transform_factor = static_cast<float>(exponent);
  } else {
    params.exponent_scale = static_cast<float>(exponent);
  }
}

}  // namespace

void launch(const core::ForwardProblem& problem, const plan::ForwardPlan& plan, TileCounter* counter,
            hopper::Stream stream) {
  if (plan.tiles == 0) return;
  Params params;
  make_maps(problem, plan, params);
  set_scale(problem, params);
  params.query_address = address_of(problem.query);
  params.key_address = address_of(problem.key);
  params.value_address = address_of(problem.value);
  params.out_address = address_of(problem.out);
  params.lse = static_cast<float*>(problem.lse.data);
  params.lse_batch_stride = problem.lse.batch_stride;
  params.lse_head_stride = problem.lse.head_stride;
  params.sinks = static_cast<const float*>(problem.sinks.data);
  params.cu_seqlens_q = problem.cu_seqlens_q;
  params.cu_seqlens_k = problem.cu_seqlens_k;
  params.seqused_q = problem.seqused_q;
  params.seqused_k = problem.seqused_k;
  params.batch = static_cast<int>(problem.batch);
  params.heads = plan.heads;
  params.group_shift = std::countr_zero(static_cast<unsigned>(plan.group));
  params.heads_per_key = static_cast<int>(plan.heads / problem.heads_kv);
  params.seqlen_q = static_cast<int>(problem.max_seqlen_q);
  params.seqlen_kv = static_cast<int>(problem.max_seqlen_kv);
  params.head_dim = static_cast<int>(problem.head_dim);
  params.head_dim_v = static_cast<int>(problem.head_dim_v);
  params.window_left = problem.window_left;
  params.window_right = problem.window_right;
  params.bottom_right = problem.bottom_right;
  params.unequal_lengths = plan.unequal_lengths;
  params.counter = counter;
  params.tiles = plan.tiles;
  params.row_blocks = plan.row_blocks;
  params.heads_together = plan.heads_together;
  params.longest_first = plan.longest_first;

  hopper::LaunchStatus status{"no such kernel"};
  const bool is_bfloat16 = problem.dtype == DType::bfloat16;
#define FLASH3_FORWARD(d, dv, warpgroups_, keys, k_stages, v_stages, q_stages, reason)                      \
  if (plan.tile.head_dim == (d) && plan.tile.head_dim_v == (dv) && plan.tile.warpgroups == (warpgroups_) && \
      plan.tile.block_kv == (keys)) {                                                                       \
    status = is_bfloat16 ? start<hopper::bfloat16, d, dv, warpgroups_, keys>(params, plan.blocks, stream)   \
                         : start<hopper::float16, d, dv, warpgroups_, keys>(params, plan.blocks, stream);   \
  }
#include "plan/kernels.def"
#undef FLASH3_FORWARD
  if (!status) throw DeviceError(std::string("the forward kernel could not be launched: ") + status.error);
}

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE
