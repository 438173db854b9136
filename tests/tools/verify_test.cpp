// The judgement behind --verify: what it measures, and that a wrong result does not pass.
#include "verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "random.h"

namespace flash3::tools {
namespace {

struct Case {
  OwnedTensor query{DType::float32, {2, 9, 4, 24}}, key{DType::float32, {2, 13, 2, 24}},
      value{DType::float32, {2, 13, 2, 8}};
  Result result;
  ForwardArgs args;

  explicit Case(DType dtype) {
    Random random(7);
    query = OwnedTensor(dtype, {2, 9, 4, 24});
    key = OwnedTensor(dtype, {2, 13, 2, 24});
    value = OwnedTensor(dtype, {2, 13, 2, 8});
    for (const OwnedTensor* t : {&query, &key, &value}) fill_normal(t->view, random);
    args.query = query.view;
    args.key = key.view;
    args.value = value.view;
    result = make_result(args, dtype);
    args.out = result.out.view;
    args.lse = result.lse.view;
  }
};

float* floats(const OwnedTensor& t) { return static_cast<float*>(t.view.data); }

TEST(Compare, MeasuresErrors) {
  const OwnedTensor actual(DType::float32, {4}), expected(DType::float64, {4});
  const double values[]{3, -4, 0, 0};
  for (int i = 0; i < 4; ++i) store(expected.view, i, values[i]);
  floats(actual)[0] = 3.5f, floats(actual)[1] = -4;
  const ErrorFigures e = compare(actual.view, expected.view);
  EXPECT_DOUBLE_EQ(e.largest, 0.5);
  EXPECT_DOUBLE_EQ(e.rmse, 0.25);
  EXPECT_DOUBLE_EQ(e.relative, 0.1);
  EXPECT_DOUBLE_EQ(e.magnitude, 4);
  EXPECT_EQ(e.nonfinite_mismatches, 0);
}

TEST(Compare, InfinitiesAndNaNAgreeWithTheirLikeOnly) {
  constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const double expected_values[]{inf, -inf, nan, inf, 1, nan}, actual_values[]{inf, -inf, nan, -inf, nan, 1};
  const OwnedTensor actual(DType::float32, {6}), expected(DType::float64, {6});
  for (int i = 0; i < 6; ++i) store(actual.view, i, actual_values[i]), store(expected.view, i, expected_values[i]);
  EXPECT_EQ(compare(actual.view, expected.view).nonfinite_mismatches, 3);
}

TEST(Judge, TheReferenceAndTheNaiveComputationPass) {
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    Case c(dtype);
    c.args.options.causal = true;
    c.args.options.softcap = 5;
    const Result reference = compute_reference(c.args), naive = compute_naive(c.args);
    forward(c.args, {.engine = Engine::reference, .num_threads = 1});
    EXPECT_TRUE(judge(c.result, naive, reference).passed) << name_of(dtype);
    EXPECT_TRUE(judge(naive, naive, reference).passed) << name_of(dtype);
    // In float32 the naive computation is nearly exact: it shares no mistake with the reference.
    if (dtype == DType::float32) {
      EXPECT_LT(judge(naive, naive, reference).out.largest, 1e-5);
    }
  }
}

TEST(Judge, AWrongResultFails) {
  Case c(DType::float32);
  const Result reference = compute_reference(c.args), naive = compute_naive(c.args);
  forward(c.args, {.engine = Engine::reference, .num_threads = 1});
  ASSERT_TRUE(judge(c.result, naive, reference).passed);
  floats(c.result.out)[100] += 1e-4f;
  EXPECT_FALSE(judge(c.result, naive, reference).passed);
  floats(c.result.out)[100] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(judge(c.result, naive, reference).passed);
  forward(c.args, {.engine = Engine::reference, .num_threads = 1});
  floats(c.result.lse)[3] += 1e-3f;
  EXPECT_FALSE(judge(c.result, naive, reference).passed);
}

TEST(Naive, KnowsEveryOption) {
  Case c(DType::float32);
  Random random(3);
  const OwnedTensor bias(DType::float32, {1, 4, 1, 13}), sinks(DType::float32, {4});
  fill_normal(bias.view, random);
  fill_normal(sinks.view, random);
  const auto largest_error = [&] {
    return compare(compute_naive(c.args).out.view, compute_reference(c.args).out.view).largest;
  };
  EXPECT_LT(largest_error(), 1e-5);
  c.args.bias = bias.view;
  EXPECT_LT(largest_error(), 1e-5);
  c.args.sinks = sinks.view;
  EXPECT_LT(largest_error(), 1e-5);
  c.args.options.window_left = 2;
  c.args.options.window_right = 1;
  EXPECT_LT(largest_error(), 1e-5);
  c.args.options.alignment = MaskAlignment::top_left;
  EXPECT_LT(largest_error(), 1e-5);
  c.args.options.softmax_scale = -0.7;
  c.args.options.softcap = 3;
  EXPECT_LT(largest_error(), 1e-5);
}

}  // namespace
}  // namespace flash3::tools
