// From the product of a query and a key to its score: scale, softcap, bias and the mask, on tiles of keys x queries.

#if defined(FLASH3_CPU_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_SCORES_INL_H_
#undef FLASH3_CPU_SCORES_INL_H_
#else
#define FLASH3_CPU_SCORES_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "core/half.h"
#include "core/mask.h"
#include "cpu/exp-inl.h"
#include "cpu/rows.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

inline constexpr float infinity = std::numeric_limits<float>::infinity();

// A strip: up to Kind::strip query rows of one head, a lane each.
template <class Kind>
struct Strip {
  Strip() = default;
  Strip(const Head& of, std::int64_t index)
      : rows{index * Kind::strip, std::min((index + 1) * Kind::strip, of.rows())},
        vectors(static_cast<int>(divide_up(rows.size(), lanes))),
        tiles(core::key_tiles(of.sequence.band, of.queries(rows), of.sequence.seqlen_kv, Kind::row_tile)),
        head(&of) {}

  core::Range rows;
  int vectors = 0;        // those that hold rows
  core::TileRange tiles;  // of Kind::row_tile keys, that some row sees; the inner ones are seen whole by all rows
  const Head* head = nullptr;

  // Keys that a lane's row sees. A lane past the last row sees what the last row sees; nobody looks at it.
  core::Range keys(int lane) const {
    const std::int64_t query = head->query(std::min(rows.begin + lane, rows.end - 1));
    return core::keys_seen_by_any(head->sequence.band, {query, query + 1}, head->sequence.seqlen_kv);
  }
};

// Which lanes see which of the keys near some base.
template <class Kind>
struct LaneMask {
  alignas(64) std::int32_t first[Kind::strip];
  alignas(64) std::int32_t end[Kind::strip];

  // Good for keys base ... base + 2^20.
  void set(const Strip<Kind>& s, std::int64_t base) {
    const auto relative = [&](std::int64_t key) {
      return static_cast<std::int32_t>(std::clamp<std::int64_t>(key - base, 0, std::int64_t{1} << 20));
    };
    for (int lane = 0; lane < s.vectors * lanes; ++lane) {
      const core::Range keys = s.keys(lane);
      first[lane] = relative(keys.begin);
      end[lane] = relative(keys.end);
    }
  }
  void hide(int lane) { first[lane] = end[lane] = 0; }
  bool sees(int lane, std::int64_t key) const { return first[lane] <= key && key < end[lane]; }

  HWY_INLINE hn::Mask<Float> vector(int v, std::int64_t key) const {
    const hn::RebindToSigned<Float> integers;
    const auto k = hn::Set(integers, static_cast<std::int32_t>(key));
    return hn::RebindMask(lanes_tag, hn::And(hn::Ge(k, hn::Load(integers, first + v * lanes)),
                                             hn::Lt(k, hn::Load(integers, end + v * lanes))));
  }
};

// What stands between a product and a score. `plain` means nothing but a positive scale, which then joins the
// conversion to base 2 in one multiply-add.
struct ScoreRule {
  explicit ScoreRule(const core::Problem& problem_) : problem(problem_) {
    scale = static_cast<float>(problem.softmax_scale);
    softcap = static_cast<float>(problem.softcap);
    plain = softcap == 0 && !problem.bias && scale >= std::numeric_limits<float>::min();
    log2_factor = static_cast<float>((plain ? problem.softmax_scale : 1.0) * std::numbers::log2e);
  }

  const core::Problem& problem;
  bool plain;
  float scale, softcap;
  float log2_factor;  // of what the tiles hold in the end
};

inline float bias_at(const core::Operand& bias, std::int64_t offset) {
  switch (bias.dtype) {
    case DType::float16:
      return core::to_float(static_cast<const core::float16*>(bias.data)[offset]);
    case DType::bfloat16:
      return core::to_float(static_cast<const core::bfloat16*>(bias.data)[offset]);
    default:
      return static_cast<const float*>(bias.data)[offset];
  }
}

// Bias of row_tile keys x the strip's rows, out[key][lane]; keys past the sequence are not read.
template <class Kind>
void load_bias(const core::Problem& problem, const Strip<Kind>& s, std::int64_t key, float* HWY_RESTRICT out) {
  const Head& head = *s.head;
  const std::int64_t keys = std::min<std::int64_t>(Kind::row_tile, head.sequence.seqlen_kv - key);
  for (std::int64_t row = s.rows.begin; row < s.rows.end; ++row) {
    const std::int64_t lane = row - s.rows.begin;
    const std::int64_t offset = problem.bias_offset(head.batch, head.query_head(row), head.query(row)) + key;
    for (std::int64_t k = 0; k < keys; ++k) out[k * Kind::strip + lane] = bias_at(problem.bias, offset + k);
  }
}

struct Score {
  Vector value;
  Vector tanh;  // of the softcap, for its derivative
};

HWY_INLINE Score score_of(const ScoreRule& rule, Vector product, const float* HWY_RESTRICT bias) {
  Score score;
  score.value = hn::Mul(product, hn::Set(lanes_tag, rule.scale));
  score.tanh = hn::Zero(lanes_tag);
  if (rule.softcap > 0) {
    const Vector cap = hn::Set(lanes_tag, rule.softcap);
    score.tanh = tanh(hn::Div(score.value, cap));
    score.value = hn::Mul(score.tanh, cap);
  }
  if (rule.problem.bias) score.value = hn::Add(score.value, hn::Load(lanes_tag, bias));
  return score;
}

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
