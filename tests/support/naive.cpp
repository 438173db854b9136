// Whole score matrices, one head at a time, in float32.
#include "support/naive.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/half.h"

namespace flash3::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

float round_to(float x, DType dtype) {
  if (dtype == DType::bfloat16) return core::to_float(core::to_bfloat16(x));
  if (dtype == DType::float16) return core::to_float(core::to_float16(x));
  return x;
}

// One term after the other, as the register that accumulates an element of a matrix product sees them.
float dot(const float* a, const float* b, std::int64_t n) {
  float sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// For sizes, which need no such care, in any order: eight partial sums are quicker.
float quick_dot(const float* a, const float* b, std::int64_t n) {
  constexpr std::int64_t lanes = 8;
  float sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) sums[l] += a[i + l] * b[i + l];
  }
  float sum = 0;
  for (float s : sums) sum += s;
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(float* to, float factor, const float* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

std::vector<float> magnitudes(std::vector<float> v) {
  for (float& x : v) x = std::abs(x);
  return v;
}

std::vector<float> floats(const Tensor& t) {
  std::vector<float> v(static_cast<std::size_t>(t ? t.numel() : 0));
  for (std::size_t n = 0; n < v.size(); ++n) v[n] = static_cast<float>(t.get(static_cast<std::int64_t>(n)));
  return v;
}

// A result as it is summed up.
struct Sums {
  explicit Sums(const Tensor& like)
      : values(static_cast<std::size_t>(like ? like.numel() : 0)), terms(values.size()), squared_noise(values.size()) {}

  Approximation rounded(DType dtype) const {
    Approximation a;
    for (float x : values) a.values.push_back(round_to(x, dtype));
    a.terms.assign(terms.begin(), terms.end());
    for (float x : squared_noise) a.noise.push_back(std::sqrt(x));
    return a;
  }

  std::vector<float> values, terms, squared_noise;
};

// The scores of one query row.
struct Row {
  std::int64_t b, head, i;
  std::vector<std::int64_t> keys;  // that the row sees
  std::vector<float> score, slope;
  float terms = 0;  // the largest sum of magnitudes that a score was added up from
  bool empty = true;
};

}  // namespace

struct Naive::Data {
  Case c;
  const Tensors& t;
  std::vector<float> query, key, value, bias, sinks, d_out, d_lse;
  std::vector<float> query_size, key_size, value_size, d_out_size;  // magnitudes, for the terms
  std::vector<Row> rows;

  Data(const Case& c_, const Tensors& t_)
      : c(c_),
        t(t_),
        query(floats(t.query)),
        key(floats(t.key)),
        value(floats(t.value)),
        bias(floats(t.bias)),
        sinks(floats(t.sinks)),
        d_out(floats(t.d_out)),
        d_lse(floats(t.d_lse)),
        query_size(magnitudes(query)),
        key_size(magnitudes(key)),
        value_size(magnitudes(value)),
        d_out_size(magnitudes(d_out)) {
    for (std::int64_t b = 0; b < c.batch(); ++b) {
      for (std::int64_t head = 0; head < c.heads_q; ++head) {
        for (std::int64_t i = 0; i < c.query.of(b); ++i) rows.push_back(row(b, head, i));
      }
    }
  }

  std::int64_t key_element(const Row& r, std::size_t n, std::int64_t dim) const {
    return c.key_element(r.b, r.keys[n], r.head * c.heads_kv / c.heads_q, dim);
  }

  Row row(std::int64_t b, std::int64_t head, std::int64_t i) const {
    Row r{b, head, i, {}, {}, {}};
    const auto scale = static_cast<float>(c.scale());
    const auto softcap = static_cast<float>(c.options.softcap);
    const std::int64_t q = c.query_element(b, i, head, c.head_dim);
    for (std::int64_t j = 0; j < c.key.of(b); ++j) {
      if (!c.sees(b, i, j)) continue;
      r.keys.push_back(j);
      const std::int64_t k = key_element(r, r.keys.size() - 1, c.head_dim);
      float score = scale * dot(query.data() + q, key.data() + k, c.head_dim);
      float slope = scale;
      if (softcap > 0) {
        const float capped = std::tanh(score / softcap);
        score = softcap * capped;
        slope *= 1 - capped * capped;
      }
      if (!bias.empty()) score += bias[static_cast<std::size_t>(c.bias_element(b, head, i, j))];
      r.terms = std::max(r.terms, std::abs(scale) * quick_dot(query_size.data() + q, key_size.data() + k, c.head_dim));
      r.score.push_back(score);
      r.slope.push_back(slope);
      if (score != -infinity) r.empty = false;
    }
    return r;
  }
};

Naive::Naive(const Case& c, const Tensors& t) : data_(std::make_unique<Data>(c, t)) {}
Naive::~Naive() = default;

NaiveForward Naive::forward(Rounding rounding) const {
  const Data& in = *data_;
  const Case& c = in.c;
  const bool unnormalised = rounding == Rounding::unnormalised;
  Sums out(in.t.out), lse(in.t.lse);
  for (const Row& row : in.rows) {
    const auto row_element = static_cast<std::size_t>(c.row_element(row.b, row.i, row.head));
    lse.values[row_element] = -infinity;
    if (row.empty) continue;
    float* o = out.values.data() + c.query_element(row.b, row.i, row.head, c.head_dim_v);
    float* terms = out.terms.data() + c.query_element(row.b, row.i, row.head, c.head_dim_v);
    float max = -infinity;
    for (float score : row.score) max = std::fmax(max, score);
    const float sink = in.sinks.empty() ? -infinity : in.sinks[static_cast<std::size_t>(row.head)];
    max = std::fmax(max, sink);
    float sum = std::exp(sink - max);
    for (float score : row.score) sum += std::exp(score - max);
    for (std::size_t n = 0; n < row.score.size(); ++n) {
      const std::int64_t v = in.key_element(row, n, c.head_dim_v);
      const float weight = std::exp(row.score[n] - max);
      add_scaled(o, round_to(unnormalised ? weight : weight / sum, c.dtype), in.value.data() + v, c.head_dim_v);
      add_scaled(terms, weight / sum, in.value_size.data() + v, c.head_dim_v);
    }
    for (std::int64_t d = 0; unnormalised && d < c.head_dim_v; ++d) o[d] /= sum;
    lse.values[row_element] = max + std::log(sum);
    lse.terms[row_element] = 1 + row.terms;
  }
  return {out.rounded(c.dtype), lse.rounded(DType::float32)};
}

NaiveBackward Naive::backward(const NaiveForward& forward) const {
  const Data& in = *data_;
  const Case& c = in.c;
  Sums d_query(in.t.d_query), d_key(in.t.d_key), d_value(in.t.d_value), d_sinks(in.t.d_sinks), d_bias(in.t.d_bias);
  std::vector<float> out(static_cast<std::size_t>(c.head_dim_v));
  for (const Row& row : in.rows) {
    if (row.empty) continue;
    const std::int64_t o = c.query_element(row.b, row.i, row.head, c.head_dim_v);
    const std::int64_t q = c.query_element(row.b, row.i, row.head, c.head_dim);
    const auto row_element = static_cast<std::size_t>(c.row_element(row.b, row.i, row.head));
    const float* d_out = in.d_out.data() + o;
    for (std::size_t d = 0; d < out.size(); ++d) {
      out[d] = static_cast<float>(forward.out.values[static_cast<std::size_t>(o) + d]);
    }
    const auto lse = static_cast<float>(forward.lse.values[row_element]);
    // A float32 lse is half an ulp off: p is, relatively, by as much as lse is absolutely.
    const float from_lse = std::abs(lse) / 2;
    const float d_lse = in.d_lse.empty() ? 0 : in.d_lse[row_element];
    const float delta = dot(d_out, out.data(), c.head_dim_v) - d_lse;
    float delta_terms = std::abs(d_lse), delta_noise = 0;
    for (std::size_t d = 0; d < out.size(); ++d) {
      const float product = std::abs(d_out[d] * out[d]);
      delta_terms += product;
      delta_noise += product * product * static_cast<float>(ulp_of(c.dtype) * ulp_of(c.dtype));
    }
    for (std::size_t n = 0; n < row.keys.size(); ++n) {
      const std::int64_t k = in.key_element(row, n, c.head_dim), v = in.key_element(row, n, c.head_dim_v);
      const float p = std::exp(row.score[n] - lse);
      const float d_score = p * (dot(d_out, in.value.data() + v, c.head_dim_v) - delta);
      const float terms =
          p * (quick_dot(in.d_out_size.data() + o, in.value_size.data() + v, c.head_dim_v) + delta_terms) +
          std::abs(d_score) * from_lse;
      const float d_product = round_to(d_score, c.dtype) * row.slope[n];
      const float product_terms = terms * std::abs(row.slope[n]);
      add_scaled(d_value.values.data() + v, round_to(p, c.dtype), d_out, c.head_dim_v);
      add_scaled(d_value.terms.data() + v, p * (1 + from_lse), in.d_out_size.data() + o, c.head_dim_v);
      add_scaled(d_key.values.data() + k, d_product, in.query.data() + q, c.head_dim);
      add_scaled(d_key.terms.data() + k, product_terms, in.query_size.data() + q, c.head_dim);
      add_scaled(d_query.values.data() + q, d_product, in.key.data() + k, c.head_dim);
      add_scaled(d_query.terms.data() + q, product_terms, in.key_size.data() + k, c.head_dim);
      if (c.bias) {
        const auto element = static_cast<std::size_t>(c.bias_element(row.b, row.head, row.i, row.keys[n]));
        d_bias.values[element] += d_score;
        d_bias.terms[element] += terms;
        d_bias.squared_noise[element] += p * p * delta_noise;
      }
    }
    if (c.sinks) {
      const auto head = static_cast<std::size_t>(row.head);
      const float p = std::exp(in.sinks[head] - lse);
      d_sinks.values[head] -= p * delta;
      d_sinks.terms[head] += p * delta_terms * (1 + from_lse);
      d_sinks.squared_noise[head] += p * p * delta_noise;
    }
  }
  const DType bias_dtype = in.t.d_bias ? in.t.d_bias.dtype() : DType::float32;
  return {d_query.rounded(c.dtype), d_key.rounded(c.dtype), d_value.rounded(c.dtype), d_sinks.rounded(DType::float32),
          d_bias.rounded(bias_dtype)};
}

}  // namespace flash3::test
