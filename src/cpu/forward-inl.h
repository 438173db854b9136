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
  static constexpr std::int64_t block_tiles = block_keys / row_tile;
  static constexpr std::int64_t group_tiles = Kind::group_keys / row_tile;

  ForwardPass(const core::ForwardProblem& problem, int threads)
      : problem_(problem),
        rule_(problem),
        heads_(heads_of(problem)),
        depth_(units_of<Kind>(problem.head_dim)),
        value_rows_(round_up(problem.head_dim_v, row_tile)) {
    std::int64_t longest = 0, strips = 0;
    for (const Head& head : heads_) strips += divide_up(head.rows(), strip);
    // Enough pieces to keep all threads busy to the end.
    piece_strips_ = std::clamp<std::int64_t>(strips / (8 * threads), 1, Kind::most_strips);
    for (const Head& head : heads_) {
      const bool empty = head.rows() == 0;
      longest = std::max(longest, empty ? 0 : head.sequence.seqlen_kv);
      work_.push_back(
          {empty ? 0 : divide_up(head.sequence.seqlen_kv, block_keys), divide_up(head.rows(), strip * piece_strips_)});
    }
    const std::int64_t blocks = divide_up(longest, block_keys);
    keys_ = packed_.reserve<Unit>(blocks * block_keys * depth_);
    values_ = packed_.reserve<Unit>(blocks * value_rows_ * (block_keys / per_unit));
    values_finite_ = packed_.reserve<std::uint8_t>(blocks);
    slots_ = std::min<std::int64_t>(threads + 1, static_cast<std::int64_t>(heads_.size()));
    packed_.allocate(slots_);

    queries_ = scratch_.reserve<Unit>(piece_strips_ * depth_ * strip);
    scores_ = scratch_.reserve<float>(group_tiles * row_tile * strip);
    weights_ = group_tiles == block_tiles ? scores_ : scratch_.reserve<Unit>(block_keys / per_unit * strip);
    out_ = scratch_.reserve<float>(piece_strips_ * value_rows_ * strip);
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

  // Computes a piece: neighbouring strips, which take each block of keys in turn while it is in the cache.
  void compute(int thread, std::int64_t head_index, std::int64_t slot, std::int64_t piece) const {
    const Head& head = heads_[static_cast<std::size_t>(head_index)];
    Progress strips[Kind::most_strips];
    const std::int64_t count = std::min(piece_strips_, divide_up(head.rows(), strip) - piece * piece_strips_);
    std::int64_t first_block = std::numeric_limits<std::int64_t>::max(), end_block = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      Progress& p = strips[i];
      p.rows = Strip<Kind>(head, piece * piece_strips_ + i);
      p.queries = scratch_.at<Unit>(queries_, thread) + i * depth_ * strip;
      p.out = scratch_.at<float>(out_, thread) + i * value_rows_ * strip;
      load_queries(p.rows, scratch_.at<Element>(staging_, thread), p.queries);
      first_block = std::min(first_block, p.rows.tiles.begin / block_tiles);
      end_block = std::max(end_block, divide_up(p.rows.tiles.end, block_tiles));
    }
    for (std::int64_t block = first_block; block < end_block; ++block) {
      for (std::int64_t i = 0; i < count; ++i) add_block(thread, slot, block, strips[i]);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const Progress& p = strips[i];
      if (p.first) std::memset(p.out, 0, static_cast<std::size_t>(value_rows_ * strip) * sizeof(float));
      store(p.rows, p.state, p.out, scratch_.at<float>(staging_, thread));
    }
  }

 private:
  // Of the online softmax, a lane each. Maxima are of the products (plain) or the scores, before the factor to base 2.
  struct State {
    State() {
      std::fill_n(maximum, strip, -infinity);
      std::fill_n(origin, strip, -infinity);
      std::fill_n(sum, strip, 0.0f);
    }
    alignas(64) float maximum[strip];
    alignas(64) float origin[strip];  // what weights are relative to: the maximum, or one before it
    alignas(64) float sum[strip];
    alignas(64) float tracked[strip];  // maxima of the latest scores, where products track them
    alignas(64) float decay[strip];    // what the origin's last move makes of earlier sums
  };

  // A strip under way.
  struct Progress {
    Strip<Kind> rows;
    State state;
    Unit* queries = nullptr;
    float* out = nullptr;
    bool first = true;     // nothing is in the output yet
    bool decayed = false;  // what is there is still to be multiplied by `decay`
  };

  // What a strip sees of a block: its tiles, and the mask if some rows do not see all of them.
  struct Seen {
    core::Range tiles;
    bool masked;
    LaneMask<Kind> mask;
  };

  // Adds a block of keys to a strip's sums. Scores become weights group by group; what the weights are multiplied with
  // waits until the block ends or the origin moves.
  void add_block(int thread, std::int64_t slot, std::int64_t block, Progress& p) const {
    const Strip<Kind>& s = p.rows;
    Seen seen;
    seen.tiles = {std::max(s.tiles.begin, block * block_tiles), std::min(s.tiles.end, (block + 1) * block_tiles)};
    if (seen.tiles.empty()) return;
    seen.masked = seen.tiles.begin < s.tiles.full_begin || seen.tiles.end > s.tiles.full_end;
    if (seen.masked) seen.mask.set(s, seen.tiles.begin * row_tile);

    const auto from = [&](std::int64_t tile) {
      return core::Range{tile, std::min(seen.tiles.end, tile + group_tiles)};
    };
    float* scores = scratch_.at<float>(scores_, thread);
    const auto weights_at = [&](std::int64_t tile) {
      return scratch_.at<Unit>(weights_, thread) + (tile - seen.tiles.begin) * row_tile / per_unit * strip;
    };
    std::int64_t added = seen.tiles.begin;  // tiles before this one are in the output
    const auto add_until = [&](std::int64_t end) {
      if (added < end) add_values(slot, block, seen, {added, end}, weights_at(added), p);
      added = end;
    };
    for (core::Range group = from(seen.tiles.begin); !group.empty(); group = from(group.end)) {
      scores_of(thread, slot, seen, group, scores, p);
      const std::int64_t count = group.size() * row_tile;
      if (raise_maximum(s, count, scores, p.state)) {
        add_until(group.begin);
        move_origin(s, p.state);
        p.decayed = true;
      }
      weights(s, count, scores, weights_at(group.begin), p.state);
    }
    add_until(seen.tiles.end);
  }

  // Scores of a group's tiles.
  void scores_of(int thread, std::int64_t slot, const Seen& seen, core::Range tiles, float* scores, Progress& p) const {
    const Strip<Kind>& s = p.rows;
    const Unit* keys = packed_.at<Unit>(keys_, slot);
    float* bias = scratch_.at<float>(bias_, thread);
    const std::int64_t full_begin = std::clamp(s.tiles.full_begin, tiles.begin, tiles.end);
    const std::int64_t full_end = std::clamp(s.tiles.full_end, full_begin, tiles.end);
    for (int v = 0; v < s.vectors; ++v) {
      hn::Store(hn::Set(lanes_tag, -infinity), lanes_tag, p.state.tracked + v * lanes);
    }
    const auto masked_tiles = [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t t = from; t < to; ++t) {
        scores_of_tile(s, keys, p.queries, t, scores + (t - tiles.begin) * row_tile * strip, bias, &seen.mask,
                       (t - seen.tiles.begin) * row_tile, p.state);
      }
    };
    masked_tiles(tiles.begin, full_begin);
    for (std::int64_t t = full_begin; t < full_end; ++t) {
      float* tile = scores + (t - tiles.begin) * row_tile * strip;
      if (rule_.plain) {
        Kind::score_strip(s.vectors, depth_, keys + t * row_tile * depth_, p.queries, tile, Maxima{p.state.tracked});
      } else {
        scores_of_tile(s, keys, p.queries, t, tile, bias, nullptr, 0, p.state);
      }
    }
    masked_tiles(full_end, tiles.end);
  }

  // out += V^T weights, over tiles of a block.
  void add_values(std::int64_t slot, std::int64_t block, const Seen& seen, core::Range tiles, const Unit* weights,
                  Progress& p) const {
    const std::int64_t count = tiles.size() * row_tile;
    const std::int64_t offset = tiles.begin * row_tile - block * block_keys;
    const Unit* values = packed_.at<Unit>(values_, slot) + block * value_rows_ * (block_keys / per_unit);
    const Start start = p.first ? Start::zero : p.decayed ? Start::scaled_sum : Start::sum;
    p.first = p.decayed = false;
    if (seen.masked && !packed_.at<std::uint8_t>(values_finite_, slot)[block]) {
      return add_exactly(p, seen.mask, (tiles.begin - seen.tiles.begin) * row_tile, count, weights, values, offset,
                         start);
    }
    const auto add = [&]<Start how>() {
      for (std::int64_t column = 0; column < value_rows_; column += row_tile) {
        Kind::template multiply_strip<how>(
            p.rows.vectors, count / per_unit, values + (column * block_keys + offset * row_tile) / per_unit,
            typename Kind::Panel{}, weights, strip, p.out + column * strip, strip, p.state.decay);
      }
    };
    switch (start) {
      case Start::zero:
        return add.template operator()<Start::zero>();
      case Start::sum:
        return add.template operator()<Start::sum>();
      case Start::scaled_sum:
        return add.template operator()<Start::scaled_sum>();
    }
  }

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
      Vector maximum = hn::Load(lanes_tag, state.tracked + v * lanes);
      for (int k = 0; k < row_tile; ++k) {
        float* at = tile + k * strip + v * lanes;
        Vector x = hn::Load(lanes_tag, at);
        if (!rule_.plain) x = score_of(rule_, x, bias + k * strip + v * lanes).value;
        if (mask) x = hn::IfThenElse(mask->vector(v, mask_key + k), x, hn::Set(lanes_tag, -infinity));
        maximum = hn::Max(maximum, x);
        hn::Store(x, lanes_tag, at);
      }
      hn::Store(maximum, lanes_tag, state.tracked + v * lanes);
    }
  }

  // Whether weights would grow too large: then the origin has to move to the maximum.
  HWY_INLINE hn::Mask<Float> too_far(Vector maximum, Vector origin) const {
    return hn::Gt(hn::Mul(hn::Sub(maximum, origin), hn::Set(lanes_tag, rule_.log2_factor)),
                  hn::Set(lanes_tag, Kind::log2_most_weight));
  }

  // Returns whether some row's origin has to move.
  HWY_INLINE bool raise_maximum(const Strip<Kind>& s, std::int64_t count, const float* scores, State& state) const {
    bool move = Kind::log2_most_weight == 0;
    for (int v = 0; v < s.vectors; ++v) {
      const Vector greatest = Kind::greatest(scores + v * lanes, count, hn::Load(lanes_tag, state.tracked + v * lanes));
      const Vector maximum = hn::Max(hn::Load(lanes_tag, state.maximum + v * lanes), greatest);
      hn::Store(maximum, lanes_tag, state.maximum + v * lanes);
      if constexpr (Kind::log2_most_weight > 0) {
        move |= !hn::AllFalse(lanes_tag, too_far(maximum, hn::Load(lanes_tag, state.origin + v * lanes)));
      }
    }
    return move;
  }

  // Where nothing has been seen, any finite origin makes the weights exp(-inf) = 0.
  static HWY_INLINE Vector finite_origin(Vector origin) {
    return hn::IfThenElse(hn::Eq(origin, hn::Set(lanes_tag, -infinity)), hn::Zero(lanes_tag), origin);
  }

  HWY_NOINLINE void move_origin(const Strip<Kind>& s, State& state) const {
    for (int v = 0; v < s.vectors; ++v) {
      const Vector before = hn::Load(lanes_tag, state.origin + v * lanes);
      Vector origin = hn::Load(lanes_tag, state.maximum + v * lanes);
      // Only where it has to: a row's bits do not depend on its neighbours.
      if constexpr (Kind::log2_most_weight > 0) origin = hn::IfThenElse(too_far(origin, before), origin, before);
      const Vector decay =
          Kind::exp2(hn::Mul(hn::Sub(before, finite_origin(origin)), hn::Set(lanes_tag, rule_.log2_factor)));
      hn::Store(origin, lanes_tag, state.origin + v * lanes);
      hn::Store(decay, lanes_tag, state.decay + v * lanes);
      hn::Store(hn::Mul(hn::Load(lanes_tag, state.sum + v * lanes), decay), lanes_tag, state.sum + v * lanes);
    }
  }

  // Scores become weights exp(score - origin), as operands of the next product; in place if need be.
  HWY_NOINLINE void weights(const Strip<Kind>& s, std::int64_t count, const float* scores, Unit* weights,
                            State& state) const {
    constexpr int together = Kind::weights_together;
    const Vector factor = hn::Set(lanes_tag, rule_.log2_factor);
    for (int v = 0; v < s.vectors; ++v) {
      const Vector origin = finite_origin(hn::Load(lanes_tag, state.origin + v * lanes));
      Vector sum = hn::Load(lanes_tag, state.sum + v * lanes);
      const float* at = scores + v * lanes;
      float* to = reinterpret_cast<float*>(weights) + v * lanes;
      for (std::int64_t k = 0; k < count; k += together, at += together * strip, to += together / per_unit * strip) {
        // Subtracted before it is multiplied: exact near the maximum, however large that is.
        Vector w[together];
        for (int i = 0; i < together; ++i) w[i] = hn::Sub(hn::Load(lanes_tag, at + i * strip), origin);
        for (int i = 0; i < together; ++i) w[i] = hn::Mul(w[i], factor);
        Kind::exp2(w);
        if constexpr (per_unit == 1) {
          for (int i = 0; i < together; ++i) {
            sum = hn::Add(sum, w[i]);
            hn::Store(w[i], lanes_tag, to + i * strip);
          }
        } else {
          for (int i = 0; i < together; i += 2) {
            sum = hn::Add(sum, hn::Add(w[i], w[i + 1]));
            hn::Store(Kind::pair_of_weights(w[i], w[i + 1]), lanes_tag, to + i / 2 * strip);
          }
        }
      }
      hn::Store(sum, lanes_tag, state.sum + v * lanes);
    }
  }

  // The same where a V that is not finite may only reach the rows that see its key. Rare, so it is plain.
  HWY_NOINLINE void add_exactly(const Progress& p, const LaneMask<Kind>& mask, std::int64_t mask_key,
                                std::int64_t count, const Unit* weights, const Unit* values, std::int64_t offset,
                                Start start) const {
    for (int lane = 0; lane < p.rows.rows.size(); ++lane) {
      for (std::int64_t column = 0; column < value_rows_; ++column) {
        const std::int64_t panel = column / row_tile * row_tile;
        float& out = p.out[column * strip + lane];
        float sum = start == Start::zero ? 0 : out;
        if (start == Start::scaled_sum) sum *= p.state.decay[lane];
        for (std::int64_t k = 0; k < count; ++k) {
          if (!mask.sees(lane, mask_key + k)) continue;
          sum += depth_major_element<Kind>(weights, strip, k, lane) *
                 Kind::panel_element(values + panel * block_keys / per_unit, offset + k, column - panel);
        }
        out = sum;
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
        if (state.origin[lane] < greatest) {  // in double, so that the two logarithms cancel
          lse -= (static_cast<double>(greatest) - static_cast<double>(state.origin[lane])) *
                 static_cast<double>(rule_.plain ? rule_.scale : 1);
        }
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
  std::int64_t depth_;         // units of head_dim
  std::int64_t value_rows_;    // head_dim_v, padded
  std::int64_t piece_strips_;  // strips of a piece of work
  std::int64_t slots_ = 0;
  Workspace packed_, scratch_;
  std::size_t keys_, values_, values_finite_;                      // of a slot
  std::size_t queries_, scores_, weights_, out_, bias_, staging_;  // of a thread
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
