// What the backward passes share: statistics of query rows, and the gradients of a tile of scores.

#if defined(FLASH3_CPU_GRADIENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_GRADIENTS_INL_H_
#undef FLASH3_CPU_GRADIENTS_INL_H_
#else
#define FLASH3_CPU_GRADIENTS_INL_H_
#endif

#include "cpu/pack-inl.h"
#include "cpu/scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// A strip of query rows, as the backward passes read it.
template <class Kind>
class GradientRows {
 public:
  using Element = typename Kind::Element;
  static constexpr int strip = Kind::strip;

  // Scratch: `rows` for a strip of rows, `out` for a strip transposed.
  GradientRows(const core::BackwardProblem& problem, const Head& head, std::int64_t first, Element* rows, Unit* out)
      : problem_(problem), head_(head), first_(first), rows_(rows), out_(out) {}

  // lse of the rows. An absent row, or one that sees no key, gets inf: its weights will be 0. Returns whether there is
  // none such.
  bool load_lse(float* lse) const {
    bool all_live = true;
    for (std::int64_t lane = 0; lane < strip; ++lane) {
      lse[lane] = infinity;
      if (first_ + lane < head_.rows()) {
        const float x = static_cast<const float*>(problem_.lse.data)[head_.q_offset(problem_.lse, first_ + lane)];
        if (x != -infinity) lse[lane] = x;
      }
      all_live &= lse[lane] != infinity;
    }
    return all_live;
  }

  // A tensor's rows, transposed: `depth` units of `size` elements. Rows whose lse is inf are 0. The rows themselves
  // stay in the scratch, `padded` elements each. Returns whether they are finite.
  bool load(const core::Operand& t, std::int64_t size, std::int64_t depth, std::int64_t padded, const float* lse,
            Unit* transposed) const {
    bool finite = true;
    for (std::int64_t lane = 0; lane < strip; ++lane) {
      Element* row = rows_ + lane * padded;
      if (lse[lane] != infinity) {
        finite &= load_row(at_offset(t.data, t.dtype, head_.q_offset(t, first_ + lane)), t.dtype, size, padded, row);
      } else {
        std::memset(row, 0, static_cast<std::size_t>(padded) * sizeof(Element));
      }
    }
    transpose(reinterpret_cast<const Unit*>(rows_), padded / Kind::per_unit, strip, depth, transposed, strip);
    return finite;
  }

  // delta = rowsum(dO . O) - dLSE, given dO transposed. Overwrites the scratch.
  void load_delta(std::int64_t value_depth, const float* lse, const Unit* d_out, float* delta) const {
    load(problem_.out, problem_.head_dim_v, value_depth, value_depth * Kind::per_unit, lse, out_);
    Kind::dot_strip(value_depth, d_out, out_, reinterpret_cast<const Unit*>(rows_), delta);
    for (std::int64_t lane = 0; lane < strip && problem_.d_lse; ++lane) {
      if (lse[lane] == infinity) continue;
      delta[lane] -= static_cast<const float*>(problem_.d_lse.data)[head_.q_offset(problem_.d_lse, first_ + lane)];
    }
  }

 private:
  const core::BackwardProblem& problem_;
  const Head& head_;
  std::int64_t first_;
  Element* rows_;
  Unit* out_;
};

// A strip's share of a block of keys: those from `first` to `end` - 1, counted from the block's first, whole row tiles,
// that some of its rows see. Those between full_first and full_end are seen by all.
template <class Kind>
struct Part {
  static constexpr int row_tile = Kind::row_tile;

  Part() = default;

  // `lse` are the strip's; all_live says that none of them is infinite.
  Part(const Strip<Kind>& s, std::int64_t block_begin, std::int64_t block_size, const float* lse, bool all_live)
      : rows(s) {
    const auto within = [&](std::int64_t tile) {
      return std::clamp<std::int64_t>(tile * row_tile - block_begin, 0, round_up(block_size, row_tile));
    };
    first = within(s.tiles.begin);
    end = within(s.tiles.end);
    full_first = all_live ? std::max(within(s.tiles.full_begin), first) : end;
    full_end = all_live ? std::max(within(s.tiles.full_end), full_first) : end;
    masked = full_first != first || full_end != end;
    if (!masked) return;
    mask.set(s, block_begin);
    for (int lane = 0; lane < Kind::strip; ++lane) {
      if (lse[lane] == infinity) mask.hide(lane);
    }
  }

  bool empty() const { return first >= end; }

  // visit(key, mask or null) for each row tile.
  template <class Visit>
  HWY_INLINE void for_each_tile(const Visit& visit) const {
    for (std::int64_t k = first; k < full_first; k += row_tile) visit(k, &mask);
    for (std::int64_t k = full_first; k < full_end; k += row_tile) visit(k, nullptr);
    for (std::int64_t k = full_end; k < end; k += row_tile) visit(k, &mask);
  }

  Strip<Kind> rows;
  std::int64_t first = 0, full_first = 0, full_end = 0, end = 0;
  bool masked = false;
  LaneMask<Kind> mask;
};

// Weights and gradients of row_tile keys x a strip of rows.
template <class Kind>
class GradientTile {
 public:
  static constexpr int strip = Kind::strip;
  static constexpr int row_tile = Kind::row_tile;

  struct Operands {
    const Unit *keys, *values;        // rows, from the tile's first key on
    const Unit *queries, *d_out;      // of the strip, transposed
    std::int64_t depth, value_depth;  // units
  };

  HWY_INLINE GradientTile(const ScoreRule& rule, const Strip<Kind>& s, std::int64_t key, const Operands& o)
      : rule_(rule) {
    Kind::score_strip(s.vectors, o.depth, o.keys, o.queries, products_);
    Kind::score_strip(s.vectors, o.value_depth, o.values, o.d_out, d_weights_);
    if (rule.problem.bias) load_bias(rule.problem, s, key, bias_);
  }

  struct Gradient {
    Vector weight;     // P
    Vector d_score;    // P . (dP - delta): the bias's gradient too
    Vector d_product;  // dS, without the scale
  };

  // Of key k of the tile and vector v of the strip. Where the mask hides it, everything is 0.
  HWY_INLINE Gradient at(int k, int v, Vector lse, Vector delta, const LaneMask<Kind>* mask,
                         std::int64_t mask_key) const {
    const int i = k * strip + v * lanes;
    const Score score = score_of(rule_, hn::Load(lanes_tag, products_ + i), bias_ + i);
    Vector slope = hn::Zero(lanes_tag);
    if (!rule_.plain) slope = hn::NegMulAdd(score.tanh, score.tanh, hn::Set(lanes_tag, 1.0f));
    Gradient g;
    // The score is rounded as the forward pass rounds a row's greatest for its lse, so that they cancel, however large.
    g.weight = Kind::exp(hn::Sub(score.value, lse));
    g.d_score = hn::Mul(g.weight, hn::Sub(hn::Load(lanes_tag, d_weights_ + i), delta));
    if (mask) {
      const auto visible = mask->vector(v, mask_key + k);
      g.weight = hn::IfThenElseZero(visible, g.weight);
      g.d_score = hn::IfThenElseZero(visible, g.d_score);
      slope = hn::IfThenElseZero(visible, slope);
    }
    g.d_product = rule_.plain ? g.d_score : hn::Mul(g.d_score, slope);
    return g;
  }

 private:
  const ScoreRule& rule_;
  alignas(64) float products_[row_tile * strip];
  alignas(64) float d_weights_[row_tile * strip];
  alignas(64) float bias_[row_tile * strip];
};

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
