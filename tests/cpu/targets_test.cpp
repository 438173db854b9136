// Every instruction set that the CPU engine was compiled for and this processor has, not only the best of them.
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <limits>
#include <string>

#include "cpu/amx.h"
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

// The engine for a dtype on a target: with the tile unit and without, where that makes a difference.
std::vector<TestedEngine> cpu_engines(std::int64_t target, DType dtype) {
  std::vector<TestedEngine> engines{{Engine::cpu, nullptr, 1, false}};
  if (target == HWY_AVX3_SPR && dtype == DType::bfloat16 && cpu::tiles_granted()) {
    engines.push_back({Engine::cpu, nullptr, 1, false, false});
  }
  return engines;
}

TEST(Targets, EachIsRight) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const OnlyTarget only(target);
    if (cpu::kernel_info(DType::float32).instructions != std::string(hwy::TargetName(target)))
      continue;  // not compiled in
    for (DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      // Without a fused multiply-add each product is rounded twice, which the yardstick does not allow for.
      if (dtype == DType::float32 && target == HWY_SSE2) continue;
      for (std::int64_t n = 0; n < cases(25); ++n) {
        const Case c = random_case(case_seed(n), dtype);
        const Expectation expected(c, Tensors(c), Passes::forward_and_backward);
        for (const TestedEngine& engine : cpu_engines(target, dtype)) {
          Tensors t(c);
          ASSERT_EQ(expected.check(engine, t), "")
              << hwy::TargetName(target) << ", seed " << case_seed(n) << ": " << c.to_string();
        }
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
          const auto tensors = [&] {
            Tensors t(c);
            (t.*where).set(40 * c.head_dim + 3, value);
            return t;
          };
          const Expectation expected(c, tensors(), Passes::forward_and_backward);
          for (const TestedEngine& engine : cpu_engines(target, dtype)) {
            Tensors t = tensors();
            ASSERT_EQ(expected.check(engine, t), "")
                << hwy::TargetName(target) << ", " << value << ": " << c.to_string();
          }
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
      for (const TestedEngine& engine : cpu_engines(target, dtype)) {
        c.num_threads = 1;
        const auto alone = run(engine, c, Passes::forward_and_backward);
        c.num_threads = 3;
        const auto shared = run(engine, c, Passes::forward_and_backward);
        ASSERT_TRUE(alone && shared);
        EXPECT_EQ(different_bits(*alone, *shared), "") << hwy::TargetName(target);
      }
    }
  }
}

TEST(Targets, TilesAreUsedWhereTheyAreGranted) {
  const bool used = cpu::kernel_info(DType::bfloat16).products == std::string("AMX bfloat16");
  EXPECT_EQ(used, cpu::tiles_granted() && cpu::kernel_info(DType::float32).instructions == std::string("AVX3_SPR"));
  EXPECT_EQ(cpu::kernel_info(DType::float32).products, std::string("float32"));
  const InUse without({Engine::cpu, nullptr, 1, false, false});
  EXPECT_NE(cpu::kernel_info(DType::bfloat16).products, std::string("AMX bfloat16"));
}

}  // namespace
}  // namespace flash3::test
