// The backward pass: for a block of keys, one trip over the query rows that see it.

#if defined(FLASH3_CPU_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_BACKWARD_INL_H_
#undef FLASH3_CPU_BACKWARD_INL_H_
#else
#define FLASH3_CPU_BACKWARD_INL_H_
#endif

#include <atomic>
#include <optional>

#include "cpu/bias-inl.h"
#include "cpu/gradients-inl.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// With P = exp(score - lse) and delta = rowsum(dO . O) - dLSE:
//   dS = P . (V dO^T - delta);   dQ = scale dS K;   dK = scale dS^T Q;   dV = P^T dO
//
// A block of keys owns its rows of dK and dV. The rows of dQ belong to tiles of query rows, to which the blocks add in
// ascending order whichever threads compute them: a tile's turn says how many of its blocks have been.
template <class Kind>
class BackwardPass {
 public:
  using Element = typename Kind::Element;
  static constexpr std::int64_t per_unit = Kind::per_unit;
  static constexpr int strip = Kind::strip;
  static constexpr int row_tile = Kind::row_tile;
  static constexpr std::int64_t block_keys = Kind::backward_block_keys;
  static constexpr std::int64_t tile_strips = Kind::backward_tile_strips;
  static constexpr std::int64_t tile_rows = tile_strips * strip;

  BackwardPass(const core::BackwardProblem& problem, int threads)
      : problem_(problem),
        rule_(problem),
        heads_(heads_of(problem)),
        depth_(units_of<Kind>(problem.head_dim)),
        value_depth_(units_of<Kind>(problem.head_dim_v)),
        columns_(round_up(problem.head_dim, Kind::column_step)),
        value_columns_(round_up(problem.head_dim_v, Kind::column_step)),
        query_rows_(round_up(problem.head_dim, row_tile)) {
    std::int64_t tiles = 0;
    for (const Head& head : heads_) {
      first_tile_.push_back(tiles);
      const std::int64_t of_head = divide_up(head.rows(), tile_rows);
      tiles += of_head;
      most_tiles_ = std::max(most_tiles_, of_head);
      work_.push_back({of_head, divide_up(head.sequence.seqlen_kv, block_keys)});
    }
    if (problem.d_sinks) d_sinks_.resize(static_cast<std::size_t>(tiles * problem.group()));

    const std::int64_t rows = most_tiles_ * tile_rows;
    queries_t_ = packed_.reserve<Unit>(rows * depth_);
    d_out_t_ = packed_.reserve<Unit>(rows * value_depth_);
    queries_ = packed_.reserve<Unit>(rows / per_unit * columns_);
    d_out_ = packed_.reserve<Unit>(rows / per_unit * value_columns_);
    lse_ = packed_.reserve<float>(rows);
    delta_ = packed_.reserve<float>(rows);
    d_queries_ = packed_.reserve<float>(rows * query_rows_);
    tile_info_ = packed_.reserve<TileInfo>(most_tiles_);
    slots_ = std::min<std::int64_t>(threads + 1, static_cast<std::int64_t>(heads_.size()));
    packed_.allocate(slots_);
    turns_ = std::vector<std::atomic<std::int64_t>>(static_cast<std::size_t>(slots_ * most_tiles_));

    keys_ = scratch_.reserve<Unit>(block_keys * depth_);
    values_ = scratch_.reserve<Unit>(block_keys * value_depth_);
    key_panels_ = scratch_.reserve<Unit>(query_rows_ * (block_keys / per_unit));
    weights_ = scratch_.reserve<Element>(block_keys * tile_rows);
    d_scores_ = scratch_.reserve<Element>(block_keys * tile_rows);
    if (per_unit > 1) d_scores_pairs_ = scratch_.reserve<Unit>(tile_strips * (block_keys / per_unit) * strip);
    d_keys_ = scratch_.reserve<float>(block_keys * columns_);
    d_values_ = scratch_.reserve<float>(block_keys * value_columns_);
    const std::int64_t widest = std::max(columns_, value_columns_);
    staging_ = scratch_.reserve<float>(round_up(std::max<std::int64_t>(strip, row_tile), 2) * widest);
    out_ = scratch_.reserve<Unit>(strip * value_depth_);
    scratch_.allocate(threads);
  }

  const std::vector<HeadWork>& work() const { return work_; }
  std::int64_t slots() const { return slots_; }

  // Packs a tile of query rows and their statistics, and clears its dQ.
  void prepare(int thread, std::int64_t head_index, std::int64_t slot, std::int64_t tile) {
    const Head& head = heads_[static_cast<std::size_t>(head_index)];
    const std::int64_t begin = tile * tile_rows;
    const std::int64_t end = std::min(begin + tile_rows, head.rows());
    auto* staging = scratch_.at<Element>(staging_, thread);
    double* d_sinks = problem_.d_sinks ? d_sinks_.data() + (first_tile_[static_cast<std::size_t>(head_index)] + tile) *
                                                               problem_.group()
                                       : nullptr;
    TileInfo info;
    for (std::int64_t first = begin; first < end; first += strip) {
      const GradientRows<Kind> rows(problem_, head, first, staging, scratch_.at<Unit>(out_, thread));
      float* lse = packed_.at<float>(lse_, slot) + first;
      float* delta = packed_.at<float>(delta_, slot) + first;
      info.all_live[(first - begin) / strip] = rows.load_lse(lse);
      info.queries_finite &= rows.load(problem_.query, problem_.head_dim, depth_, columns_, lse,
                                       packed_.at<Unit>(queries_t_, slot) + first * depth_);
      Kind::depth_major(staging, columns_, strip, columns_,
                        packed_.at<Unit>(queries_, slot) + first / per_unit * columns_, columns_);
      Unit* d_out_t = packed_.at<Unit>(d_out_t_, slot) + first * value_depth_;
      info.d_out_finite &= rows.load(problem_.d_out, problem_.head_dim_v, value_depth_, value_columns_, lse, d_out_t);
      Kind::depth_major(staging, value_columns_, strip, value_columns_,
                        packed_.at<Unit>(d_out_, slot) + first / per_unit * value_columns_, value_columns_);
      rows.load_delta(value_depth_, lse, d_out_t, delta);
      if (d_sinks != nullptr) add_to_d_sinks(head, first, lse, delta, d_sinks);
    }
    packed_.at<TileInfo>(tile_info_, slot)[tile] = info;
    std::memset(packed_.at<float>(d_queries_, slot) + begin * query_rows_, 0,
                static_cast<std::size_t>(tile_rows * query_rows_) * sizeof(float));
    turn(slot, tile).store(0, std::memory_order_relaxed);
    if (blocks_of_tile(head, tile).empty()) store_d_queries(thread, head, slot, tile);
  }

  // Computes a block of keys.
  void compute(int thread, std::int64_t head_index, std::int64_t slot, std::int64_t block) {
    const Head& head = heads_[static_cast<std::size_t>(head_index)];
    const std::int64_t begin = block * block_keys;
    const std::int64_t count = std::min(block_keys, head.sequence.seqlen_kv - begin);
    const bool keys_finite = load_keys(thread, head, begin, count);
    float* d_keys = scratch_.at<float>(d_keys_, thread);
    float* d_values = scratch_.at<float>(d_values_, thread);
    std::memset(d_keys, 0, static_cast<std::size_t>(block_keys * columns_) * sizeof(float));
    std::memset(d_values, 0, static_cast<std::size_t>(block_keys * value_columns_) * sizeof(float));

    const core::Range queries =
        core::queries_that_see_any(head.sequence.band, {begin, begin + count}, head.sequence.seqlen_q);
    const std::int64_t last_tile = divide_up(queries.end * head.group, tile_rows);
    for (std::int64_t tile = queries.begin * head.group / tile_rows; tile < last_tile; ++tile) {
      const core::Range blocks = blocks_of_tile(head, tile);
      if (block < blocks.begin || block >= blocks.end) continue;
      Part<Kind> parts[tile_strips];
      for (std::int64_t i = 0; i < tile_strips; ++i) parts[i] = d_scores_of(thread, head, slot, tile, i, begin, count);

      add_to_keys(thread, slot, tile, parts);
      std::atomic<std::int64_t>& turn_of_tile = turn(slot, tile);
      wait_until_equal(turn_of_tile, block - blocks.begin);
      add_to_queries(thread, slot, tile, parts, keys_finite);
      if (block + 1 == blocks.end) {
        store_d_queries(thread, head, slot, tile);
      } else {
        add_and_notify(turn_of_tile);
      }
    }
    store_d_keys(thread, head, begin, count);
  }

  // What is summed over the batch, once everything else is done.
  void finish() const {
    if (!problem_.d_sinks) return;
    auto* target = static_cast<float*>(problem_.d_sinks.data);
    std::vector<double> sums(static_cast<std::size_t>(problem_.heads_q));
    const double* from = d_sinks_.data();
    for (std::size_t h = 0; h < heads_.size(); ++h) {
      for (std::int64_t tile = 0; tile < work_[h].preparations; ++tile) {
        for (std::int64_t g = 0; g < problem_.group(); ++g) {
          sums[static_cast<std::size_t>(heads_[h].kv_head * problem_.group() + g)] += *from++;
        }
      }
    }
    for (std::size_t h = 0; h < sums.size(); ++h) target[h] = static_cast<float>(sums[h]);
  }

 private:
  struct TileInfo {
    bool queries_finite = true;
    bool d_out_finite = true;
    bool all_live[tile_strips] = {true, true, true, true};  // no row of the strip is absent or sees no key
  };

  std::atomic<std::int64_t>& turn(std::int64_t slot, std::int64_t tile) {
    return turns_[static_cast<std::size_t>(slot * most_tiles_ + tile)];
  }

  // Blocks of keys that some row of the tile sees.
  static core::Range blocks_of_tile(const Head& head, std::int64_t tile) {
    const core::Range rows{tile * tile_rows, std::min((tile + 1) * tile_rows, head.rows())};
    const core::Range keys = core::keys_seen_by_any(head.sequence.band, head.queries(rows), head.sequence.seqlen_kv);
    if (keys.empty()) return {0, 0};
    return {keys.begin / block_keys, divide_up(keys.end, block_keys)};
  }

  void add_to_d_sinks(const Head& head, std::int64_t first, const float* lse, const float* delta, double* sums) const {
    for (std::int64_t lane = 0; lane < strip; ++lane) {
      if (lse[lane] == infinity) continue;
      const std::int64_t query_head = head.query_head(first + lane);
      const double sink = static_cast<const float*>(problem_.sinks.data)[query_head];
      sums[query_head - head.first_query_head] -=
          std::exp(sink - static_cast<double>(lse[lane])) * static_cast<double>(delta[lane]);
    }
  }

  // K and V as rows, K as panels. Returns whether K is finite.
  bool load_keys(int thread, const Head& head, std::int64_t begin, std::int64_t count) const {
    const core::Sequence& sequence = head.sequence;
    Unit* keys = scratch_.at<Unit>(keys_, thread);
    Unit* values = scratch_.at<Unit>(values_, thread);
    Unit* panels = scratch_.at<Unit>(key_panels_, thread);
    auto* staging = scratch_.at<Element>(staging_, thread);
    bool finite = true;
    for (std::int64_t k = 0; k < count; k += row_tile) {
      for (std::int64_t r = 0; r < row_tile; ++r) {
        Element* row = staging + r * columns_;
        auto* value = reinterpret_cast<Element*>(values + (k + r) * value_depth_);
        if (k + r < count) {
          finite &= load_row(at_offset(problem_.key.data, problem_.dtype,
                                       sequence.kv_offset(problem_.key, head.kv_head, begin + k + r)),
                             problem_.dtype, problem_.head_dim, columns_, row);
          load_row(at_offset(problem_.value.data, problem_.dtype,
                             sequence.kv_offset(problem_.value, head.kv_head, begin + k + r)),
                   problem_.dtype, problem_.head_dim_v, value_depth_ * per_unit, value);
        } else {
          std::memset(row, 0, static_cast<std::size_t>(columns_) * sizeof(Element));
          std::memset(value, 0, static_cast<std::size_t>(value_depth_) * sizeof(Unit));
        }
        std::memcpy(keys + (k + r) * depth_, row, static_cast<std::size_t>(depth_) * sizeof(Unit));
      }
      for (std::int64_t column = 0; column < query_rows_; column += row_tile) {
        Kind::pack_panel(staging + column, columns_, panels + (column * block_keys + k * row_tile) / per_unit);
      }
    }
    return finite;
  }

  // P and dS of one strip and the block, as operands of the products to come.
  Part<Kind> d_scores_of(int thread, const Head& head, std::int64_t slot, std::int64_t tile, std::int64_t index,
                         std::int64_t begin, std::int64_t count) const {
    const std::int64_t row = tile * tile_rows + index * strip;
    if (row >= head.rows()) return {};
    const float* lse = packed_.at<float>(lse_, slot) + row;
    const float* delta = packed_.at<float>(delta_, slot) + row;
    const Part<Kind> part(Strip<Kind>(head, row / strip), begin, count, lse,
                          packed_.at<TileInfo>(tile_info_, slot)[tile].all_live[index]);
    typename GradientTile<Kind>::Operands operands;
    operands.queries = packed_.at<Unit>(queries_t_, slot) + row * depth_;
    operands.d_out = packed_.at<Unit>(d_out_t_, slot) + row * value_depth_;
    operands.depth = depth_;
    operands.value_depth = value_depth_;
    part.for_each_tile([&](std::int64_t key, const LaneMask<Kind>* mask) {
      operands.keys = scratch_.at<Unit>(keys_, thread) + key * depth_;
      operands.values = scratch_.at<Unit>(values_, thread) + key * value_depth_;
      store_gradients(GradientTile<Kind>(rule_, part.rows, begin + key, operands), thread, part.rows.vectors, index,
                      key, lse, delta, mask);
    });
    return part;
  }

  HWY_INLINE void store_gradients(const GradientTile<Kind>& gradients, int thread, int vectors, std::int64_t index,
                                  std::int64_t key, const float* lse_at, const float* delta_at,
                                  const LaneMask<Kind>* mask) const {
    Element* weights = scratch_.at<Element>(weights_, thread) + key * tile_rows + index * strip;
    Element* d_scores = scratch_.at<Element>(d_scores_, thread) + key * tile_rows + index * strip;
    for (int v = 0; v < vectors; ++v) {
      const Vector lse = hn::Load(lanes_tag, lse_at + v * lanes);
      const Vector delta = hn::Load(lanes_tag, delta_at + v * lanes);
      for (int k = 0; k < row_tile; k += per_unit) {
        const std::int64_t to = k * tile_rows + v * lanes;
        const auto g = gradients.at(k, v, lse, delta, mask, key);
        if constexpr (per_unit == 1) {
          hn::Store(g.weight, lanes_tag, weights + to);
          hn::Store(g.d_product, lanes_tag, d_scores + to);
        } else {
          const auto next = gradients.at(k + 1, v, lse, delta, mask, key);
          Kind::store_rows(g.weight, next.weight, weights + to, tile_rows);
          Kind::store_rows(g.d_product, next.d_product, d_scores + to, tile_rows);
          const hn::RebindToUnsigned<Float> units;
          hn::Store(hn::BitCast(units, Kind::pair(g.d_product, next.d_product)), units,
                    scratch_.at<Unit>(d_scores_pairs_, thread) + (index * block_keys + key + k) / per_unit * strip +
                        v * lanes);
        }
      }
    }
    // The products to come read whole strips.
    for (int k = 0; k < row_tile && vectors < Kind::strip_vectors; ++k) {
      const std::int64_t to = k * tile_rows + vectors * lanes;
      const auto bytes = static_cast<std::size_t>(strip - vectors * lanes) * sizeof(Element);
      std::memset(weights + to, 0, bytes);
      std::memset(d_scores + to, 0, bytes);
    }
  }

  // dV += P^T dO and dK += dS^T Q, over the tile's rows.
  void add_to_keys(int thread, std::int64_t slot, std::int64_t tile, const Part<Kind> (&parts)[tile_strips]) const {
    const TileInfo& info = packed_.at<TileInfo>(tile_info_, slot)[tile];
    bool masked = false;
    std::int64_t first = block_keys, end = 0;
    for (const Part<Kind>& part : parts) {
      if (part.empty()) continue;
      masked |= part.masked;
      first = std::min(first, part.first);
      end = std::max(end, part.end);
    }
    const std::int64_t row = tile * tile_rows;
    const auto add = [&](bool exactly, std::size_t left, std::size_t right, std::int64_t columns, std::size_t sums) {
      const Element* a = scratch_.at<Element>(left, thread);
      const Unit* b = packed_.at<Unit>(right, slot) + row / per_unit * columns;
      float* c = scratch_.at<float>(sums, thread);
      if (exactly) return add_to_keys_exactly(parts, a, b, columns, c);
      for (std::int64_t k = first; k < end; k += row_tile) {
        // The strips that see these keys are neighbours.
        std::int64_t from = tile_strips, to = 0;
        for (std::int64_t i = 0; i < tile_strips; ++i) {
          if (parts[i].first <= k && k < parts[i].end) {
            from = std::min(from, i);
            to = i + 1;
          }
        }
        if (from >= to) continue;
        const auto* units = reinterpret_cast<const Unit*>(a + k * tile_rows + from * strip);
        Kind::template multiply_wide<Start::sum>(static_cast<int>(columns / lanes), (to - from) * strip / per_unit,
                                                 units, typename Kind::RowMajor{tile_rows / per_unit},
                                                 b + from * strip / per_unit * columns, columns, c + k * columns,
                                                 columns);
      }
    };
    add(masked && !info.d_out_finite, weights_, d_out_, value_columns_, d_values_);
    add(masked && !info.queries_finite, d_scores_, queries_, columns_, d_keys_);
  }

  // The same where a row that is not finite may only reach the keys that it sees. Rare, so it is plain.
  HWY_NOINLINE void add_to_keys_exactly(const Part<Kind> (&parts)[tile_strips], const Element* a, const Unit* b,
                                        std::int64_t columns, float* c) const {
    for (std::int64_t i = 0; i < tile_strips; ++i) {
      const Part<Kind>& part = parts[i];
      for (std::int64_t k = part.first; k < part.end; ++k) {
        for (std::int64_t lane = 0; lane < part.rows.rows.size(); ++lane) {
          if (part.masked && !part.mask.sees(static_cast<int>(lane), k)) continue;
          const float factor = element(a[k * tile_rows + i * strip + lane]);
          for (std::int64_t column = 0; column < columns; ++column) {
            c[k * columns + column] += factor * depth_major_element<Kind>(b, columns, i * strip + lane, column);
          }
        }
      }
    }
  }

  // dQ += dS K, over the block's keys.
  void add_to_queries(int thread, std::int64_t slot, std::int64_t tile, const Part<Kind> (&parts)[tile_strips],
                      bool keys_finite) const {
    const Unit* panels = scratch_.at<Unit>(key_panels_, thread);
    for (std::int64_t i = 0; i < tile_strips; ++i) {
      const Part<Kind>& part = parts[i];
      if (part.empty()) continue;
      float* sums = packed_.at<float>(d_queries_, slot) + (tile * tile_rows + i * strip) * query_rows_;
      const Unit* d_scores = nullptr;
      std::int64_t stride = strip;
      if constexpr (per_unit == 1) {
        stride = tile_rows;
        d_scores = reinterpret_cast<const Unit*>(scratch_.at<Element>(d_scores_, thread) + i * strip);
      } else {
        d_scores = scratch_.at<Unit>(d_scores_pairs_, thread) + i * (block_keys / per_unit) * strip;
      }
      if (part.masked && !keys_finite) {
        for (int lane = 0; lane < part.rows.rows.size(); ++lane) {
          for (std::int64_t column = 0; column < problem_.head_dim; ++column) {
            const std::int64_t panel = column / row_tile * row_tile;
            for (std::int64_t k = part.first; k < part.end; ++k) {
              if (!part.mask.sees(lane, k)) continue;
              sums[column * strip + lane] +=
                  depth_major_element<Kind>(d_scores, stride, k, lane) *
                  Kind::panel_element(panels + panel * block_keys / per_unit, k, column - panel);
            }
          }
        }
        continue;
      }
      for (std::int64_t column = 0; column < query_rows_; column += row_tile) {
        Kind::template multiply_strip<Start::sum>(part.rows.vectors, (part.end - part.first) / per_unit,
                                                  panels + (column * block_keys + part.first * row_tile) / per_unit,
                                                  typename Kind::Panel{}, d_scores + part.first / per_unit * stride,
                                                  stride, sums + column * strip, strip);
      }
    }
  }

  void store_d_queries(int thread, const Head& head, std::int64_t slot, std::int64_t tile) const {
    auto* staging = scratch_.at<float>(staging_, thread);
    const std::int64_t end = std::min((tile + 1) * tile_rows, head.rows());
    for (std::int64_t first = tile * tile_rows; first < end; first += strip) {
      const float* sums = packed_.at<float>(d_queries_, slot) + first * query_rows_;
      transpose(reinterpret_cast<const Unit*>(sums), strip, query_rows_, strip, reinterpret_cast<Unit*>(staging),
                columns_);
      for (std::int64_t row = first; row < std::min(first + strip, end); ++row) {
        store_scaled(staging + (row - first) * columns_, problem_.head_dim, rule_.scale,
                     at_offset(problem_.d_query.data, problem_.dtype, head.q_offset(problem_.d_query, row)));
      }
    }
  }

  void store_d_keys(int thread, const Head& head, std::int64_t begin, std::int64_t count) const {
    for (std::int64_t k = 0; k < count; ++k) {
      const auto to = [&](const core::MutableOperand& t) {
        return at_offset(t.data, t.dtype, head.sequence.kv_offset(t, head.kv_head, begin + k));
      };
      store_scaled(scratch_.at<float>(d_keys_, thread) + k * columns_, problem_.head_dim, rule_.scale,
                   to(problem_.d_key));
      store_row(scratch_.at<float>(d_values_, thread) + k * value_columns_, problem_.head_dim_v, problem_.dtype,
                to(problem_.d_value));
    }
  }

  void store_scaled(float* row, std::int64_t size, float scale, void* target) const {
    for (std::int64_t i = 0; i < size; ++i) row[i] *= scale;
    store_row(row, size, problem_.dtype, target);
  }

  const core::BackwardProblem& problem_;
  ScoreRule rule_;
  std::vector<Head> heads_;
  std::vector<HeadWork> work_;
  std::int64_t depth_, value_depth_;      // units of head_dim and head_dim_v
  std::int64_t columns_, value_columns_;  // the same dimensions, padded to vectors
  std::int64_t query_rows_;               // head_dim, padded to row tiles
  std::int64_t most_tiles_ = 0;
  std::int64_t slots_ = 0;
  std::vector<std::int64_t> first_tile_;  // of each head, among all
  std::vector<double> d_sinks_;           // of each tile and head of the group
  std::vector<std::atomic<std::int64_t>> turns_;
  Workspace packed_, scratch_;
  std::size_t queries_t_, d_out_t_, queries_, d_out_, lse_, delta_, d_queries_, tile_info_;  // of a slot
  std::size_t keys_, values_, key_panels_, weights_, d_scores_, d_scores_pairs_ = 0;         // of a thread
  std::size_t d_keys_, d_values_, staging_, out_;
};

template <class Kind>
void run_backward(const core::BackwardProblem& problem, int threads) {
  BackwardPass<Kind> pass(problem, threads);
  std::optional<BiasGradientPass<Kind>> bias;
  if (problem.d_bias) bias.emplace(problem, threads);
  Pipeline pipeline(pass.work(), pass.slots());
  run_on_threads(threads, [&](int thread) {
    [[maybe_unused]] const typename Kind::Setup setup;
    pipeline.work([&](auto... where) { pass.prepare(thread, where...); },
                  [&](auto... where) { pass.compute(thread, where...); });
  });
  pass.finish();
  if (bias) {
    run_on_threads(threads, [&](int thread) {
      [[maybe_unused]] const typename Kind::Setup setup;
      bias->work(thread);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
