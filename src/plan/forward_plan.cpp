// Choosing among the compiled forward kernels.
#include "plan/forward_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace flash3::plan {
namespace {

// What TMA wants of a tensor that it moves.
std::optional<std::string> tma_refusal(std::string_view name, const core::Operand& t, std::int64_t batch,
                                       std::int64_t rows, std::int64_t heads) {
  if (t.data == nullptr || batch == 0 || rows == 0) return std::nullopt;
  if (reinterpret_cast<std::uintptr_t>(t.data) % 16 != 0) {
    return fmt::format("{} is not aligned to 16 bytes, which TMA needs", name);
  }
  const auto element = static_cast<std::int64_t>(size_of(t.dtype));
  struct {
    std::string_view dimension;
    std::int64_t stride, extent;
  } const strides[] = {{"batch", t.batch_stride, batch}, {"row", t.seq_stride, rows}, {"head", t.head_stride, heads}};
  for (const auto& s : strides) {
    const std::int64_t bytes = s.stride * element;
    if (s.extent > 1 && (bytes < 0 || bytes % 16 != 0 || bytes >= (std::int64_t{1} << 40))) {
      return fmt::format(
          "the {} stride of {} is {} elements ({} bytes), but TMA needs a multiple of 16 bytes from 0 to "
          "2^40",
          s.dimension, name, s.stride, bytes);
    }
  }
  return std::nullopt;
}

// Whether the query heads of a key head can share a tile's rows: TMA can gather them so, 64 rows a warpgroup.
bool can_pack(const core::Problem& problem) { return problem.group() > 1 && 64 % problem.group() == 0; }

// Keys that a row of the longest sequence sees, on average, from which on a tile for long rows pays: measured. At
// head_dim 128 that tile's 192 rows divide few lengths, which is why short rows do without it; packed heads fill it.
double long_row(const ForwardTile& tile, const core::Problem& problem) {
  if (tile.head_dim <= 64) return 1500;
  return can_pack(problem) ? 200 : 700;
}

double keys_a_row(const core::Problem& problem) {
  const std::int64_t rows = std::max<std::int64_t>(problem.max_seqlen_q, 1), keys = problem.max_seqlen_kv;
  const core::Band band = core::make_band(problem.window_left, problem.window_right, problem.bottom_right, rows, keys);
  return core::visible_pairs(band, rows, keys) / static_cast<double>(rows);
}

// The smallest that holds the head dimensions; of two with the same, the second where rows are long, and more than fit
// the first.
const ForwardTile* best_tile(const core::Problem& problem) {
  const std::int64_t rows = problem.max_seqlen_q * (can_pack(problem) ? problem.group() : 1);
  const ForwardTile* best = nullptr;
  for (const ForwardTile& tile : forward_tiles) {
    if (tile.head_dim < problem.head_dim || tile.head_dim_v < problem.head_dim_v) continue;
    const int size = tile.head_dim + tile.head_dim_v;
    const int best_size = best == nullptr ? 0 : best->head_dim + best->head_dim_v;
    const bool worth_it = best != nullptr && (tile.block_q() <= best->block_q() || rows > best->block_q()) &&
                          keys_a_row(problem) >= long_row(tile, problem);
    if (best == nullptr || size < best_size || (size == best_size && worth_it)) best = &tile;
  }
  return best;
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t count_tiles(const core::Problem& problem, const ForwardTile& tile, std::int64_t group) {
  return divide_up(problem.max_seqlen_q * group, tile.block_q()) * (problem.heads_q / group) * problem.batch;
}

}  // namespace

std::optional<std::string> forward_refusal(const core::ForwardProblem& problem) {
  if (problem.dtype != DType::float16 && problem.dtype != DType::bfloat16) {
    return fmt::format("dtype is {}; the Hopper kernels take float16 and bfloat16", name_of(problem.dtype));
  }
  if (problem.bias) return "the Hopper kernels do not take a bias yet";
  if (best_tile(problem) == nullptr) {
    return fmt::format("no kernel is compiled for head_dim {} with head_dim_v {}", problem.head_dim,
                       problem.head_dim_v);
  }
  if (problem.rows_q > core::narrow_limit || problem.rows_kv > core::narrow_limit) {
    return fmt::format("query has {} rows and key {}; the kernels count to {}", problem.rows_q, problem.rows_kv,
                       core::narrow_limit);
  }
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  if (problem.batch > most || problem.heads_q > most) return "batch and heads_q must fit 31 bits";
  if (count_tiles(problem, *best_tile(problem), 1) > most) {
    return "the problem has more tiles than 31 bits count";
  }
  const std::int64_t q_batch = problem.cu_seqlens_q ? 1 : problem.batch;
  const std::int64_t kv_batch = problem.cu_seqlens_k ? 1 : problem.batch;
  const auto out = core::Operand{problem.out.data, problem.out.dtype, problem.out.batch_stride, problem.out.seq_stride,
                                 problem.out.head_stride};
  if (auto why = tma_refusal("query", problem.query, q_batch, problem.rows_q, problem.heads_q)) return why;
  if (auto why = tma_refusal("key", problem.key, kv_batch, problem.rows_kv, problem.heads_kv)) return why;
  if (auto why = tma_refusal("value", problem.value, kv_batch, problem.rows_kv, problem.heads_kv)) return why;
  if (auto why = tma_refusal("out", out, q_batch, problem.rows_q, problem.heads_q)) return why;
  return std::nullopt;
}

ForwardPlan plan_forward(const core::ForwardProblem& problem, const Gpu& gpu) {
  ForwardPlan plan;
  plan.tile = *best_tile(problem);
  const ForwardTile& tile = plan.tile;
  if (tile.head_dim == problem.head_dim && tile.head_dim_v == problem.head_dim_v) {
    plan.reasons.push_back(
        fmt::format("compiled for head_dim {} and {}: {}", tile.head_dim, tile.head_dim_v, tile.reason));
  } else {
    plan.reasons.push_back(fmt::format("the smallest kernel that holds head_dim {} and {}; the rest is zero fill",
                                       problem.head_dim, problem.head_dim_v));
  }

  const std::int64_t group = problem.group();
  const std::int64_t apart = count_tiles(problem, tile, 1);
  if (can_pack(problem)) {
    const std::int64_t packed = count_tiles(problem, tile, group);
    if (packed < apart) {
      plan.group = static_cast<int>(group);
      plan.reasons.push_back(
          fmt::format("{} query heads packed into each tile: {} tiles instead of {}", group, packed, apart));
    }
  }
  plan.heads = static_cast<int>(problem.heads_q / plan.group);
  plan.row_blocks = static_cast<int>(divide_up(problem.max_seqlen_q * plan.group, tile.block_q()));
  plan.tiles = static_cast<int>(count_tiles(problem, tile, plan.group));
  plan.blocks = std::min(plan.tiles, gpu.multiprocessors);

  plan.unequal_lengths = problem.cu_seqlens_q != nullptr || problem.seqused_q != nullptr;
  // Later rows see more where only the future is hidden: start with them, so that the short ones fill the gaps in the
  // end. Interleaving heads for that must not push their keys and values out of L2.
  plan.longest_first = problem.window_right < core::unlimited && plan.row_blocks > 1;
  if (plan.longest_first) {
    const std::int64_t per_key = plan.heads / problem.heads_kv;  // heads of the query's map that share a key head
    // Sequences of unequal lengths follow each other, the long ones first.
    const std::int64_t key_heads = problem.heads_kv * (plan.unequal_lengths ? 1 : problem.batch);
    const std::int64_t bytes =
        std::max<std::int64_t>(1, problem.max_seqlen_kv * (problem.head_dim + problem.head_dim_v) *
                                      static_cast<std::int64_t>(size_of(problem.dtype)));
    const std::int64_t budget = gpu.l2_bytes * 5 / 8;
    std::int64_t together = std::clamp<std::int64_t>(budget / bytes, 1, key_heads);
    // A group of so many tiles a multiprocessor ends without one block still at its longest tile while others have run
    // dry. A larger one would only read all its keys at once and then none.
    const std::int64_t group_tiles = plan.row_blocks * per_key, tiles_each = problem.max_seqlen_kv <= 512 ? 1 : 2;
    together = std::min(together, divide_up(tiles_each * gpu.multiprocessors, group_tiles) + 1);
    while (key_heads % together != 0) --together;
    plan.heads_together = static_cast<int>(together * per_key);
    plan.reasons.push_back(
        fmt::format("longest tiles first, {} heads at a time: their keys and values take {:.1f} MB "
                    "of L2",
                    plan.heads_together, static_cast<double>(bytes * together) / 1e6));
  }
  plan.reasons.push_back(fmt::format("{}{} tiles on {} of {} multiprocessors", plan.unequal_lengths ? "at most " : "",
                                     plan.tiles, plan.blocks, gpu.multiprocessors));
  return plan;
}

std::string ForwardPlan::describe(DType dtype) const {
  return fmt::format(
      "Hopper forward {} {}x{}: {} warpgroups of 64 queries, {} keys a step, {} stages of keys and {} of values, {} "
      "KiB shared",
      name_of(dtype), tile.head_dim, tile.head_dim_v, tile.warpgroups, tile.block_kv, tile.k_stages, tile.v_stages,
      tile.shared_bytes() / 1024);
}

}  // namespace flash3::plan
