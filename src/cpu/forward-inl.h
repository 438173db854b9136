// The forward pass: for a strip of query rows, one trip over the keys with the online softmax.

#if defined(FLASH3_CPU_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_FORWARD_INL_H_
#undef FLASH3_CPU_FORWARD_INL_H_
#else
#define FLASH3_CPU_FORWARD_INL_H_
#endif

#include "cpu/kernels.h"
#include "cpu/pack-inl.h"
#include "cpu/scores-inl.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// Queries are lanes. A strip's scores and weights are tiles [key][query], its output is [value column][query]: running
// maxima and sums are vectors, nothing is ever reduced across lanes, and the weights are used as they were made.
template <class Kind>
class ForwardPass {
 public:
  using Element = typename Kind::Element;
  static constexpr std::int64_t per_unit = Kind::per_unit;
  static constexpr int strip = Kind::strip;
  static constexpr int row_tile = Kind::row_tile;
  static constexpr std::int64_t block_keys = Kind::forward_block_keys;

  ForwardPass(const core::ForwardProblem& problem, int threads)
      : problem_(problem),
        rule_(problem),
        heads_(heads_of(problem)),
        depth_(units_of<Kind>(problem.head_dim)),
        value_rows_(round_up(problem.head_dim_v, row_tile)) {
    std::int64_t longest = 0;
    for (const Head& head : heads_) {
      const bool empty = head.rows() == 0;
      longest = std::max(longest, empty ? 0 : head.sequence.seqlen_kv);
      work_.push_back({empty ? 0 : divide_up(head.sequence.seqlen_kv, block_keys), divide_up(head.rows(), strip)});
    }
    const std::int64_t blocks = divide_up(longest, block_keys);
    keys_ = packed_.reserve<Unit>(blocks * block_keys * depth_);
    values_ = packed_.reserve<Unit>(blocks * value_rows_ * (block_keys / per_unit));
    values_finite_ = packed_.reserve<std::uint8_t>(blocks);
    slots_ = std::min<std::int64_t>(threads + 1, static_cast<std::int64_t>(heads_.size()));
    packed_.allocate(slots_);

    queries_ = scratch_.reserve<Unit>(depth_ * strip);
    scores_ = scratch_.reserve<float>(block_keys * strip);
    out_ = scratch_.reserve<float>(value_rows_ * strip);
    bias_ = scratch_.reserve<float>(row_tile * strip);
    const std::int64_t widest = std::max(depth_ * per_unit, value_rows_);
    staging_ = scratch_.reserve<float>(std::max(strip, row_tile) * round_up(widest, lanes));
    scratch_.allocate(threads);
  }

  const std::vector<HeadWork>& work() const { return work_; }
  std::int64_t slots() const { return slots_; }

  // Packs a block of keys: K as rows, V as panels of row_tile columns.
  void prepare(int thread, std::int64_t head_index, std::int64_t slot, std::int64_t block) const {
    const Head& head = heads_[static_cast<std::size_t>(head_index)];
    const core::Sequence& sequence = head.sequence;
    const std::int64_t begin = block * block_keys;
    const std::int64_t count = std::min(block_keys, sequence.seqlen_kv - begin);
    Unit* keys = packed_.at<Unit>(keys_, slot) + begin * depth_;
    for (std::int64_t k = 0; k < round_up(count, row_tile); ++k) {
      auto* row = reinterpret_cast<Element*>(keys + k * depth_);
      if (k < count) {
        load_row(
            at_offset(problem_.key.data, problem_.dtype, sequence.kv_offset(problem_.key, head.kv_head, begin + k)),
            problem_.dtype, problem_.head_dim, depth_ * per_unit, row);
      } else {
        std::memset(row, 0, static_cast<std::size_t>(depth_) * sizeof(Unit));
      }
    }
    Unit* values = packed_.at<Unit>(values_, slot) + block * value_rows_ * (block_keys / per_unit);
    auto* staging = scratch_.at<Element>(staging_, thread);
    bool finite = true;
    for (std::int64_t k = 0; k < count; k += row_tile) {
      for (std::int64_t r = 0; r < row_tile; ++r) {
        Element* row = staging + r * value_rows_;
        if (k + r < count) {
          finite &= load_row(at_offset(problem_.value.data, problem_.dtype,
                                       sequence.kv_offset(problem_.value, head.kv_head, begin + k + r)),
                             problem_.dtype, problem_.head_dim_v, value_rows_, row);
        } else {
          std::memset(row, 0, static_cast<std::size_t>(value_rows_) * sizeof(Element));
        }
      }
      for (std::int64_t column = 0; column < value_rows_; column += row_tile) {
        Kind::pack_panel(staging + column, value_rows_, values + (column * block_keys + k * row_tile) / per_unit);
      }
    }
    packed_.at<std::uint8_t>(values_finite_, slot)[block] = finite;
  }

  // Computes one strip of rows.
  void compute(int thread, std::int64_t head_index, std::int64_t slot, std::int64_t index) const {
    const Head& head = heads_[static_cast<std::size_t>(head_index)];
    const Strip<Kind> s(head, index);
    State state;
    Unit* queries = scratch_.at<Unit>(queries_, thread);
    load_queries(s, scratch_.at<Element>(staging_, thread), queries);
    float* scores = scratch_.at<float>(scores_, thread);
    float* out = scratch_.at<float>(out_, thread);
    float* bias = scratch_.at<float>(bias_, thread);
    const Unit* keys = packed_.at<Unit>(keys_, slot);
    const Unit* values = packed_.at<Unit>(values_, slot);
    const auto* finite = packed_.at<std::uint8_t>(values_finite_, slot);

    constexpr std::int64_t block_tiles = block_keys / row_tile;
    LaneMask<Kind> mask;
    bool first = true;
    for (std::int64_t begin = s.tiles.begin, end; begin < s.tiles.end; begin = end) {
      const std::int64_t block = begin / block_tiles;
      end = std::min(s.tiles.end, (block + 1) * block_tiles);
      const std::int64_t full_begin = std::clamp(s.tiles.full_begin, begin, end);
      const std::int64_t full_end = std::clamp(s.tiles.full_end, full_begin, end);
      const bool masked = full_begin != begin || full_end != end;
      if (masked) mask.set(s, begin * row_tile);

      for (int i = 0; i < s.vectors * lanes; ++i) state.block_maximum[i] = -infinity;
      const auto masked_tiles = [&](std::int64_t from, std::int64_t to) {
        for (std::int64_t t = from; t < to; ++t) {
          scores_of_tile(s, keys, queries, t, scores + (t - begin) * row_tile * strip, bias, &mask,
                         (t - begin) * row_tile, state);
        }
      };
      masked_tiles(begin, full_begin);
      for (std::int64_t t = full_begin; t < full_end; ++t) {
        float* tile = scores + (t - begin) * row_tile * strip;
        if (rule_.plain) {
          Kind::score_strip(s.vectors, depth_, keys + t * row_tile * depth_, queries, tile,
                            Maxima{state.block_maximum});
        } else {
          scores_of_tile(s, keys, queries, t, tile, bias, nullptr, 0, state);
        }
      }
      masked_tiles(full_end, end);

      const std::int64_t count = (end - begin) * row_tile;
      weights(s, count, scores, state);

      const auto* weight_units = reinterpret_cast<const Unit*>(scores);
      const std::int64_t offset = begin * row_tile - block * block_keys;
      const Unit* block_values = values + block * value_rows_ * (block_keys / per_unit);
      if (masked && !finite[block]) {
        add_exactly(s, mask, count, weight_units, block_values, offset, state, out, first);
      } else {
        for (std::int64_t column = 0; column < value_rows_; column += row_tile) {
          const Unit* panel = block_values + (column * block_keys + offset * row_tile) / per_unit;
          if (first) {
            Kind::template multiply_strip<Start::zero>(s.vectors, count / per_unit, panel, typename Kind::Panel{},
                                                       weight_units, strip, out + column * strip, strip);
          } else {
            Kind::template multiply_strip<Start::scaled_sum>(s.vectors, count / per_unit, panel, typename Kind::Panel{},
                                                             weight_units, strip, out + column * strip, strip,
                                                             state.decay);
          }
        }
      }
      first = false;
    }
    if (first) std::memset(out, 0, static_cast<std::size_t>(value_rows_ * strip) * sizeof(float));
    store(s, state, out, scratch_.at<float>(staging_, thread));
  }

 private:
  // Of the online softmax, a lane each. Maxima are of the products (plain) or the scores, before the factor to base 2.
  struct State {
    State() {
      std::fill_n(maximum, strip, -infinity);
      std::fill_n(sum, strip, 0.0f);
    }
    alignas(64) float maximum[strip];
    alignas(64) float sum[strip];
    alignas(64) float block_maximum[strip];
    alignas(64) float decay[strip];  // what this block's maximum makes of earlier sums
  };

  void load_queries(const Strip<Kind>& s, Element* staging, Unit* queries) const {
    for (int lane = 0; lane < s.vectors * lanes; ++lane) {
      Element* row = staging + lane * depth_ * per_unit;
      if (lane < s.rows.size()) {
        load_row(at_offset(problem_.query.data, problem_.dtype, s.head->q_offset(problem_.query, s.rows.begin + lane)),
                 problem_.dtype, problem_.head_dim, depth_ * per_unit, row);
      } else {
        std::memset(row, 0, static_cast<std::size_t>(depth_) * sizeof(Unit));
      }
    }
    transpose(reinterpret_cast<const Unit*>(staging), depth_, s.vectors * lanes, depth_, queries, strip);
  }

  // Scores of one tile, any rule, with its mask if one is given.
  HWY_NOINLINE void scores_of_tile(const Strip<Kind>& s, const Unit* keys, const Unit* queries, std::int64_t t,
                                   float* tile, float* bias, const LaneMask<Kind>* mask, std::int64_t mask_key,
                                   State& state) const {
    Kind::score_strip(s.vectors, depth_, keys + t * row_tile * depth_, queries, tile);
    if (problem_.bias) load_bias(problem_, s, t * row_tile, bias);
    for (int v = 0; v < s.vectors; ++v) {
      Vector maximum = hn::Load(lanes_tag, state.block_maximum + v * lanes);
      for (int k = 0; k < row_tile; ++k) {
        float* at = tile + k * strip + v * lanes;
        Vector x = hn::Load(lanes_tag, at);
        if (!rule_.plain) x = score_of(rule_, x, bias + k * strip + v * lanes).value;
        if (mask) x = hn::IfThenElse(mask->vector(v, mask_key + k), x, hn::Set(lanes_tag, -infinity));
        maximum = hn::Max(maximum, x);
        hn::Store(x, lanes_tag, at);
      }
      hn::Store(maximum, lanes_tag, state.block_maximum + v * lanes);
    }
  }

  // Scores become weights exp(score - maximum), in place, as operands of the next product.
  HWY_NOINLINE void weights(const Strip<Kind>& s, std::int64_t count, float* scores, State& state) const {
    const Vector factor = hn::Set(lanes_tag, rule_.log2_factor);
    for (int v = 0; v < s.vectors; ++v) {
      const Vector before = hn::Load(lanes_tag, state.maximum + v * lanes);
      const Vector maximum = hn::Max(before, hn::Load(lanes_tag, state.block_maximum + v * lanes));
      // Where nothing has been seen, any finite maximum makes the weights exp(-inf) = 0.
      const Vector origin =
          hn::IfThenElse(hn::Eq(maximum, hn::Set(lanes_tag, -infinity)), hn::Zero(lanes_tag), maximum);
      const Vector decay = Kind::exp2(hn::Mul(hn::Sub(before, origin), factor));
      hn::Store(maximum, lanes_tag, state.maximum + v * lanes);
      hn::Store(decay, lanes_tag, state.decay + v * lanes);
      // Subtracted before it is multiplied: exact near the maximum, however large that is.
      const auto weight = [&](const float* at) {
        return Kind::exp2(hn::Mul(hn::Sub(hn::Load(lanes_tag, at), origin), factor));
      };
      Vector sum = hn::Mul(hn::Load(lanes_tag, state.sum + v * lanes), decay);
      float* at = scores + v * lanes;
      if constexpr (per_unit == 1) {
        for (std::int64_t k = 0; k < count; ++k, at += strip) {
          const Vector w = weight(at);
          sum = hn::Add(sum, w);
          hn::Store(w, lanes_tag, at);
        }
      } else {
        float* to = at;
        for (std::int64_t k = 0; k < count; k += 2, at += 2 * strip, to += strip) {
          const Vector w0 = weight(at), w1 = weight(at + strip);
          sum = hn::Add(sum, hn::Add(w0, w1));
          hn::Store(Kind::pair(w0, w1), lanes_tag, to);
        }
      }
      hn::Store(sum, lanes_tag, state.sum + v * lanes);
    }
  }

  // out += weights x V where a V that is not finite may only reach the rows that see its key. Rare, so it is plain.
  HWY_NOINLINE void add_exactly(const Strip<Kind>& s, const LaneMask<Kind>& mask, std::int64_t count,
                                const Unit* weights, const Unit* block_values, std::int64_t offset, const State& state,
                                float* out, bool first) const {
    for (int lane = 0; lane < s.rows.size(); ++lane) {
      for (std::int64_t column = 0; column < value_rows_; ++column) {
        const std::int64_t panel = column / row_tile * row_tile;
        float sum = first ? 0 : out[column * strip + lane] * state.decay[lane];
        for (std::int64_t k = 0; k < count; ++k) {
          if (!mask.sees(lane, k)) continue;
          sum += depth_major_element<Kind>(weights, strip, k, lane) *
                 Kind::panel_element(block_values + panel * block_keys / per_unit, offset + k, column - panel);
        }
        out[column * strip + lane] = sum;
      }
    }
  }

  void store(const Strip<Kind>& s, const State& state, float* out, float* staging) const {
    const Head& head = *s.head;
    alignas(64) float factors[strip] = {};
    for (int lane = 0; lane < s.rows.size(); ++lane) {
      const std::int64_t row = s.rows.begin + lane;
      double lse = -std::numeric_limits<double>::infinity();
      factors[lane] = 0;
      if (!(state.sum[lane] == 0)) {
        const float greatest = state.maximum[lane] == -infinity ? 0 : state.maximum[lane];
        lse = static_cast<double>(rule_.plain ? greatest * rule_.scale : greatest) +
              std::log(static_cast<double>(state.sum[lane]));
        double denominator = static_cast<double>(state.sum[lane]);
        if (problem_.sinks) {
          const double sink = static_cast<const float*>(problem_.sinks.data)[head.query_head(row)];
          const double top = std::max(lse, sink);
          const double joined = sink == -std::numeric_limits<double>::infinity()
                                    ? lse
                                    : top + std::log(std::exp(lse - top) + std::exp(sink - top));
          denominator *= std::exp(joined - lse);
          lse = joined;
        }
        factors[lane] = static_cast<float>(1 / denominator);
      }
      if (problem_.lse) {
        static_cast<float*>(problem_.lse.data)[head.q_offset(problem_.lse, row)] = static_cast<float>(lse);
      }
    }
    for (std::int64_t column = 0; column < value_rows_; ++column) {
      for (int v = 0; v < s.vectors; ++v) {
        float* at = out + column * strip + v * lanes;
        const Vector factor = hn::Load(lanes_tag, factors + v * lanes);
        // A row that sees no key is 0 whatever the product says.
        const Vector x =
            hn::IfThenZeroElse(hn::Eq(factor, hn::Zero(lanes_tag)), hn::Mul(hn::Load(lanes_tag, at), factor));
        hn::Store(x, lanes_tag, at);
      }
    }
    transpose(reinterpret_cast<const Unit*>(out), strip, value_rows_, s.vectors * lanes,
              reinterpret_cast<Unit*>(staging), value_rows_);
    for (int lane = 0; lane < s.rows.size(); ++lane) {
      const std::int64_t offset = head.q_offset(problem_.out, s.rows.begin + lane);
      store_row(staging + lane * value_rows_, problem_.head_dim_v, problem_.dtype,
                at_offset(problem_.out.data, problem_.dtype, offset));
    }
  }

  const core::ForwardProblem& problem_;
  ScoreRule rule_;
  std::vector<Head> heads_;
  std::vector<HeadWork> work_;
  std::int64_t depth_;       // units of head_dim
  std::int64_t value_rows_;  // head_dim_v, padded
  std::int64_t slots_ = 0;
  Workspace packed_, scratch_;
  std::size_t keys_, values_, values_finite_;            // of a slot
  std::size_t queries_, scores_, out_, bias_, staging_;  // of a thread
};

template <class Kind>
void run_forward(const core::ForwardProblem& problem, int threads) {
  const ForwardPass<Kind> pass(problem, threads);
  Pipeline pipeline(pass.work(), pass.slots());
  run_on_threads(threads, [&](int thread) {
    [[maybe_unused]] const typename Kind::Setup setup;
    pipeline.work([&](auto... where) { pass.prepare(thread, where...); },
                  [&](auto... where) { pass.compute(thread, where...); });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
