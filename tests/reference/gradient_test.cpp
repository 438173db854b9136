// The gradients of the specification against finite differences of its forward pass, in every input, through out and
// lse.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/case.h"
#include "support/environment.h"

namespace flash3::test {
namespace {

constexpr Execution reference_engine{Engine::reference, 1};

// A weighted sum of out and lse. Rows that see nothing have an lse of -inf and no part in it.
double loss(const Case& c, Tensors& t) {
  Stay host(nullptr);
  forward(forward_args(c, t, host), reference_engine);
  double sum = 0;
  for (std::int64_t b = 0; b < c.batch(); ++b) {
    for (std::int64_t head = 0; head < c.heads_q; ++head) {
      for (std::int64_t i = 0; i < c.query.of(b); ++i) {
        const double lse = t.lse.get(c.row_element(b, i, head));
        if (std::isinf(lse)) continue;
        if (t.d_lse) sum += lse * t.d_lse.get(c.row_element(b, i, head));
        for (std::int64_t d = 0; d < c.head_dim_v; ++d) {
          const std::int64_t n = c.query_element(b, i, head, c.head_dim_v) + d;
          sum += t.out.get(n) * t.d_out.get(n);
        }
      }
    }
  }
  return sum;
}

void expect_gradient(const Case& c, Tensors& t, const char* name, Tensor Tensors::*input, Tensor Tensors::*gradient) {
  Tensor& x = t.*input;
  if (!x) return;
  constexpr double step = 1e-5;
  for (std::int64_t n = 0; n < x.numel(); ++n) {
    if (x.is_poison(n)) continue;  // not an input
    const double kept = x.get(n);
    x.set(n, kept + step);
    const double above = loss(c, t);
    x.set(n, kept - step);
    const double below = loss(c, t);
    x.set(n, kept);
    const double difference = (above - below) / (2 * step);
    const double written = (t.*gradient).get(n);
    ASSERT_NEAR(written, difference, 2e-7 * std::max(1.0, std::abs(difference)))
        << name << " element " << n << "\n  " << c.to_string() << "\n  again: " << command_for(c.seed);
  }
}

TEST(Gradients, AreTheFiniteDifferences) {
  const std::int64_t count = cases(400);
  for (std::int64_t n = 0; n < count && !HasFatalFailure(); ++n) {
    Case c = random_case(case_seed(n), DType::float64, 60);
    Random random = Random(c.seed).fork(2);
    c.head_dim = random.between(1, 4);
    c.head_dim_v = random.between(1, 4);
    c.plain_layouts = true;
    c.distribution = Distribution::normal;
    Tensors t(c);
    Stay host(nullptr);
    forward(forward_args(c, t, host), reference_engine);
    backward(backward_args(c, t, host), reference_engine);
    expect_gradient(c, t, "query", &Tensors::query, &Tensors::d_query);
    expect_gradient(c, t, "key", &Tensors::key, &Tensors::d_key);
    expect_gradient(c, t, "value", &Tensors::value, &Tensors::d_value);
    expect_gradient(c, t, "sinks", &Tensors::sinks, &Tensors::d_sinks);
    expect_gradient(c, t, "bias", &Tensors::bias, &Tensors::d_bias);
  }
}

}  // namespace
}  // namespace flash3::test
