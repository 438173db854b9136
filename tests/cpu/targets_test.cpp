// Every instruction set that the CPU engine was compiled for and this processor has, not only the best of them.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <limits>
#include <string>

#include "cpu/kernels.h"
#include "support/environment.h"
#include "support/verify.h"

namespace flash3::test {
namespace {

// While it lives, the engine sees a processor with one instruction set.
class OnlyTarget {
 public:
  explicit OnlyTarget(std::int64_t target) { hwy::SetSupportedTargetsForTest(target); }
  ~OnlyTarget() { hwy::SetSupportedTargetsForTest(0); }
  OnlyTarget(const OnlyTarget&) = delete;
  OnlyTarget& operator=(const OnlyTarget&) = delete;
};

const TestedEngine cpu_engine{Engine::cpu, nullptr, 1, false};

TEST(Targets, EachIsRight) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const OnlyTarget only(target);
    if (cpu::kernel_info(DType::float32).instructions != std::string(hwy::TargetName(target))) continue;  // not compiled in
    for (DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      // Without a fused multiply-add each product is rounded twice, which the yardstick does not allow for.
      if (dtype == DType::float32 && target == HWY_SSE2) continue;
      for (std::int64_t n = 0; n < cases(25); ++n) {
        const Case c = random_case(case_seed(n), dtype);
        Tensors t(c);
        const Expectation expected(c, t, Passes::forward_and_backward);
        ASSERT_EQ(expected.check(cpu_engine, t), "")
            << hwy::TargetName(target) << ", seed " << case_seed(n) << ": " << c.to_string();
      }
    }
  }
}

TEST(Targets, EachPassesOnWhatIsNotFinite) {
  constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const OnlyTarget only(target);
    for (DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      for (double value : {nan, infinity, -infinity}) {
        Case c;
        c.dtype = dtype;
        c.query = c.key = Lengths::fixed(1, 70);
        c.options.causal = true;
        for (Tensor Tensors::*where : {&Tensors::query, &Tensors::key, &Tensors::value}) {
          Tensors t(c);
          (t.*where).set(40 * c.head_dim + 3, value);
          const Expectation expected(c, t, Passes::forward_and_backward);
          ASSERT_EQ(expected.check(cpu_engine, t), "")
              << hwy::TargetName(target) << ", " << value << ": " << c.to_string();
        }
      }
    }
  }
}

TEST(Targets, EachGivesTheSameBitsOnAnyNumberOfThreads) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const OnlyTarget only(target);
    for (DType dtype : {DType::float32, DType::bfloat16}) {
      Case c;
      c.dtype = dtype;
      c.heads_q = 4;
      c.heads_kv = 2;
      c.query = Lengths::fixed(2, 301);
      c.key = Lengths::fixed(2, 333);
      c.options.causal = true;
      c.num_threads = 1;
      const auto alone = run(cpu_engine, c, Passes::forward_and_backward);
      c.num_threads = 3;
      const auto shared = run(cpu_engine, c, Passes::forward_and_backward);
      ASSERT_TRUE(alone && shared);
      EXPECT_EQ(different_bits(*alone, *shared), "") << hwy::TargetName(target);
    }
  }
}

}  // namespace
}  // namespace flash3::test
