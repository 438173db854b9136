// The specification against the definition written out by hand, and against values that can be checked on paper.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/check.h"
#include "flash3/flash3.h"
#include "reference/reference.h"

namespace flash3 {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr Execution reference_engine{Engine::reference, 0};

TEST(Definition, TwoKeysByHand) {
  // Scores 1 and 2, a sink at 0: P = e / (1 + e + e^2), e^2 / (1 + e + e^2).
  const double query[] = {2}, key[] = {1, 2}, value[] = {10, 20}, sink[] = {0};
  double out = 0, lse = 0;
  ForwardArgs args;
  args.query = ConstTensorView(query, DType::float64, {1, 1, 1, 1});
  args.key = ConstTensorView(key, DType::float64, {1, 2, 1, 1});
  args.value = ConstTensorView(value, DType::float64, {1, 2, 1, 1});
  args.out = TensorView(&out, DType::float64, {1, 1, 1, 1});
  args.lse = TensorView(&lse, DType::float64, {1, 1, 1});
  args.options.softmax_scale = 0.5;
  forward(args, reference_engine);
  const double e = std::exp(1.0);
  EXPECT_DOUBLE_EQ(out, (10 * e + 20 * e * e) / (e + e * e));
  EXPECT_DOUBLE_EQ(lse, std::log(e + e * e));

  args.sinks = ConstTensorView(sink, DType::float64, {1});
  forward(args, reference_engine);
  EXPECT_DOUBLE_EQ(out, (10 * e + 20 * e * e) / (1 + e + e * e));
  EXPECT_DOUBLE_EQ(lse, std::log(1 + e + e * e));
}

TEST(Definition, NonFiniteInputsReachTheRowsThatSeeThem) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  // Causal, 3 queries on 3 keys, head_dim 1. Key 1 is NaN: row 0 does not see it.
  const double query[] = {1, 1, 1};
  std::vector<double> key{1, nan, 1}, value{5, 6, 7}, bias{0, 0, 0};
  double out[3], lse[3];
  ForwardArgs args;
  args.query = ConstTensorView(query, DType::float64, {1, 3, 1, 1});
  args.key = ConstTensorView(key.data(), DType::float64, {1, 3, 1, 1});
  args.value = ConstTensorView(value.data(), DType::float64, {1, 3, 1, 1});
  args.bias = ConstTensorView(bias.data(), DType::float64, {1, 1, 1, 3});
  args.out = TensorView(out, DType::float64, {1, 3, 1, 1});
  args.lse = TensorView(lse, DType::float64, {1, 1, 3});
  args.options.causal = true;
  forward(args, reference_engine);
  EXPECT_EQ(out[0], 5);
  EXPECT_TRUE(std::isnan(out[1]) && std::isnan(lse[1]) && std::isnan(out[2]) && std::isnan(lse[2]));

  // A probability of 0 does not hide a visible NaN value, and the LSE does not see values.
  key = {1, 1, 1};
  value = {5, nan, 7};
  bias = {0, -infinity, 0};
  forward(args, reference_engine);
  EXPECT_EQ(out[0], 5);
  EXPECT_TRUE(std::isnan(out[1]) && std::isnan(out[2]));
  EXPECT_DOUBLE_EQ(lse[1], 1);
  EXPECT_DOUBLE_EQ(lse[2], 1 + std::log(2.0));

  // A row whose scores are all -inf counts as seeing nothing, even with a sink.
  const double sink = 3;
  args.sinks = ConstTensorView(&sink, DType::float64, {1});
  bias = {-infinity, -infinity, 0};
  forward(args, reference_engine);
  EXPECT_EQ(out[0], 0);
  EXPECT_EQ(out[1], 0);
  EXPECT_EQ(lse[0], -infinity);
  EXPECT_EQ(lse[1], -infinity);
  EXPECT_TRUE(std::isnan(out[2]));
  EXPECT_DOUBLE_EQ(lse[2], std::log(std::exp(1.0) + std::exp(3.0)));
}

TEST(Definition, RefusesWhatItCannotRead) {
  core::Problem problem;
  problem.dtype = DType::float8_e4m3;
  EXPECT_TRUE(reference::refusal(problem));
  problem.dtype = DType::bfloat16;
  EXPECT_FALSE(reference::refusal(problem));
  problem.device = {DeviceType::cuda, 0};
  EXPECT_TRUE(reference::refusal(problem));
}

}  // namespace
}  // namespace flash3
