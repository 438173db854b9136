// The gradient of the bias: a pass of its own, so that what many heads, sequences and queries add to one element is
// added in one order, and no thread needs a copy of the tensor.

#if defined(FLASH3_CPU_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_BIAS_INL_H_
#undef FLASH3_CPU_BIAS_INL_H_
#else
#define FLASH3_CPU_BIAS_INL_H_
#endif

#include <atomic>

#include "cpu/gradients-inl.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// A piece of work is a patch of the tensor: a strip of its rows (or its only row) and a block of keys.
template <class Kind>
class BiasGradientPass {
 public:
  using Element = typename Kind::Element;
  static constexpr int strip = Kind::strip;
  static constexpr int row_tile = Kind::row_tile;
  static constexpr std::int64_t block_keys = 128;

  BiasGradientPass(const core::BackwardProblem& problem, int threads)
      : problem_(problem),
        rule_(problem),
        depth_(units_of<Kind>(problem.head_dim)),
        value_depth_(units_of<Kind>(problem.head_dim_v)),
        batch_(problem.d_bias.batch_stride != 0 ? problem.batch : 1),
        heads_(problem.d_bias.head_stride != 0 ? problem.heads_q : 1),
        rows_(problem.d_bias.seq_stride != 0 ? problem.max_seqlen_q : 1),
        strips_(divide_up(rows_, strip)),
        blocks_(divide_up(problem.max_seqlen_kv, block_keys)) {
    keys_ = scratch_.reserve<Unit>(block_keys * depth_);
    values_ = scratch_.reserve<Unit>(block_keys * value_depth_);
    queries_ = scratch_.reserve<Unit>(strip * depth_);
    d_out_ = scratch_.reserve<Unit>(strip * value_depth_);
    sums_ = scratch_.reserve<float>(block_keys * strip);
    out_ = scratch_.reserve<Unit>(strip * value_depth_);
    staging_ = scratch_.reserve<Unit>(strip * std::max(depth_, value_depth_));
    transposed_ = scratch_.reserve<float>(block_keys * strip);
    scratch_.allocate(threads);
  }

  // Until nothing is left.
  void work(int thread) {
    for (std::int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < batch_ * heads_ * strips_ * blocks_;) {
      patch(thread, i / (heads_ * strips_ * blocks_), i / (strips_ * blocks_) % heads_, i / blocks_ % strips_,
            i % blocks_);
    }
  }

 private:
  void patch(int thread, std::int64_t batch, std::int64_t query_head, std::int64_t index, std::int64_t block) const {
    float* sums = scratch_.at<float>(sums_, thread);
    std::memset(sums, 0, block_keys * strip * sizeof(float));
    const bool all_batch = problem_.d_bias.batch_stride == 0;
    const bool all_heads = problem_.d_bias.head_stride == 0;
    for (std::int64_t b = all_batch ? 0 : batch; b < (all_batch ? problem_.batch : batch + 1); ++b) {
      for (std::int64_t h = all_heads ? 0 : query_head; h < (all_heads ? problem_.heads_q : query_head + 1); ++h) {
        const Head head{problem_.sequence(b), b, h / problem_.group(), h, 1};
        if (block * block_keys >= head.sequence.seqlen_kv) continue;
        load_keys(thread, head, block * block_keys);
        const std::int64_t end = divide_up(head.rows(), strip);
        if (problem_.d_bias.seq_stride == 0) {
          for (std::int64_t i = 0; i < end; ++i) add(thread, head, i, block * block_keys, sums);
        } else if (index < end) {
          add(thread, head, index, block * block_keys, sums);
        }
      }
    }
    store(thread, batch, query_head, index, block, sums);
  }

  void load_keys(int thread, const Head& head, std::int64_t begin) const {
    const std::int64_t count = std::min(block_keys, head.sequence.seqlen_kv - begin);
    const auto load = [&](const core::Operand& t, std::int64_t size, std::int64_t depth, Unit* rows) {
      for (std::int64_t k = 0; k < round_up(count, row_tile); ++k) {
        auto* row = reinterpret_cast<Element*>(rows + k * depth);
        if (k < count) {
          load_row(at_offset(t.data, t.dtype, head.sequence.kv_offset(t, head.kv_head, begin + k)), t.dtype, size,
                   depth * Kind::per_unit, row);
        } else {
          std::memset(row, 0, static_cast<std::size_t>(depth) * sizeof(Unit));
        }
      }
    };
    load(problem_.key, problem_.head_dim, depth_, scratch_.at<Unit>(keys_, thread));
    load(problem_.value, problem_.head_dim_v, value_depth_, scratch_.at<Unit>(values_, thread));
  }

  // One strip of one head.
  void add(int thread, const Head& head, std::int64_t index, std::int64_t begin, float* sums) const {
    const Strip<Kind> s(head, index);
    if (s.tiles.end * row_tile <= begin || s.tiles.begin * row_tile >= begin + block_keys) return;
    alignas(64) float lse[strip];
    alignas(64) float delta[strip];
    const GradientRows<Kind> rows(problem_, head, s.rows.begin, scratch_.at<Element>(staging_, thread),
                                  scratch_.at<Unit>(out_, thread));
    const bool all_live = rows.load_lse(lse);
    rows.load(problem_.query, problem_.head_dim, depth_, depth_ * Kind::per_unit, lse,
              scratch_.at<Unit>(queries_, thread));
    rows.load(problem_.d_out, problem_.head_dim_v, value_depth_, value_depth_ * Kind::per_unit, lse,
              scratch_.at<Unit>(d_out_, thread));
    rows.load_delta(value_depth_, lse, scratch_.at<Unit>(d_out_, thread), delta);
    typename GradientTile<Kind>::Operands operands;
    operands.queries = scratch_.at<Unit>(queries_, thread);
    operands.d_out = scratch_.at<Unit>(d_out_, thread);
    operands.depth = depth_;
    operands.value_depth = value_depth_;

    const Part<Kind> part(s, begin, std::min(block_keys, head.sequence.seqlen_kv - begin), lse, all_live);
    part.for_each_tile([&](std::int64_t key, const LaneMask<Kind>* mask) {
      operands.keys = scratch_.at<Unit>(keys_, thread) + key * depth_;
      operands.values = scratch_.at<Unit>(values_, thread) + key * value_depth_;
      const GradientTile<Kind> gradients(rule_, s, begin + key, operands);
      for (int v = 0; v < s.vectors; ++v) {
        for (int k = 0; k < row_tile; ++k) {
          const auto g = gradients.at(k, v, hn::Load(lanes_tag, lse + v * lanes),
                                      hn::Load(lanes_tag, delta + v * lanes), mask, key);
          float* sum = sums + (key + k) * strip + v * lanes;
          hn::Store(hn::Add(hn::Load(lanes_tag, sum), g.d_score), lanes_tag, sum);
        }
      }
    });
  }

  void store(int thread, std::int64_t batch, std::int64_t query_head, std::int64_t index, std::int64_t block,
             const float* sums) const {
    const core::MutableOperand& t = problem_.d_bias;
    float* rows = scratch_.at<float>(transposed_, thread);  // [query][key]
    const std::int64_t count = std::min(block_keys, problem_.max_seqlen_kv - block * block_keys);
    std::int64_t first = index * strip, end = std::min(first + strip, rows_);
    if (t.seq_stride == 0) {
      first = 0;
      end = 1;
      for (std::int64_t k = 0; k < count; ++k) {
        double sum = 0;
        for (std::int64_t lane = 0; lane < strip; ++lane) sum += static_cast<double>(sums[k * strip + lane]);
        rows[k] = static_cast<float>(sum);
      }
    } else {
      transpose(reinterpret_cast<const Unit*>(sums), strip, block_keys, strip, reinterpret_cast<Unit*>(rows),
                block_keys);
    }
    for (std::int64_t row = first; row < end; ++row) {
      const std::int64_t offset = batch * t.batch_stride + query_head * t.head_stride + row * t.seq_stride;
      store_row(rows + (row - first) * block_keys, count, t.dtype,
                at_offset(t.data, t.dtype, offset + block * block_keys));
    }
  }

  const core::BackwardProblem& problem_;
  ScoreRule rule_;
  std::int64_t depth_, value_depth_;
  std::int64_t batch_, heads_, rows_;  // extents of the tensor but for the keys
  std::int64_t strips_, blocks_;
  std::atomic<std::int64_t> next_{0};
  Workspace scratch_;
  std::size_t keys_, values_, queries_, d_out_, out_, sums_, staging_, transposed_;
};

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
