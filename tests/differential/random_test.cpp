// Random problems of every kind, forward and backward, on every engine.
#include <gtest/gtest.h>

#include "support/environment.h"
#include "support/verify.h"

namespace flash3::test {
namespace {

class RandomProblems : public testing::TestWithParam<DType> {};

TEST_P(RandomProblems, ForwardAndBackward) {
  const std::int64_t count = cases(GetParam() == DType::float64 ? 100 : 300);
  int failures = 0;
  for (std::int64_t n = 0; n < count && failures < 5; ++n) {
    const Case c = random_case(case_seed(n), GetParam());
    if (!verify_random(n, c, Passes::forward_and_backward)) ++failures;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RandomProblems,
                         testing::Values(DType::float32, DType::float16, DType::bfloat16, DType::float64),
                         [](const auto& param) { return std::string(name_of(param.param)); });

}  // namespace
}  // namespace flash3::test
