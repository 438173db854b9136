// The toy kernels on the emulator: right results and no report, under every policy and many seeds.
#include <gtest/gtest.h>

#include "emulator/report.h"
#include "hopper/toy_harness.h"

namespace flash3 {
namespace {

class Toy : public testing::TestWithParam<emulator::Policy> {};

TEST_P(Toy, GemmIsRight) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const emulator::WithSchedule with({seed, GetParam()});
    ASSERT_EQ(toy::run_gemm(), "") << "seed " << seed;
  }
}

TEST_P(Toy, GemmOfAClusterIsRight) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const emulator::WithSchedule with({seed, GetParam()});
    ASSERT_EQ(toy::run_cluster_gemm(), "") << "seed " << seed;
  }
}

TEST_P(Toy, LinearAttentionIsRight) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const emulator::WithSchedule with({seed, GetParam()});
    ASSERT_EQ(toy::run_linear(), "") << "seed " << seed;
  }
}

TEST_P(Toy, FewerKeyBlocksThanStages) {
  const emulator::WithSchedule with({1, GetParam()});
  ASSERT_EQ(toy::run_gemm(64), "");
  ASSERT_EQ(toy::run_linear(1, 1), "");
}

INSTANTIATE_TEST_SUITE_P(Policies, Toy, testing::ValuesIn(emulator::all_policies),
                         [](const auto& policy) { return std::string(to_string(policy.param)); });

TEST(Toy, SameSeedSameSchedule) {
  // A schedule is worth reporting only if it can be run again: a failing one must fail in the same words.
  const auto report = [](std::uint64_t seed) {
    hopper::TensorMap map = {};  // never made: the producer faults at its first copy
    toy::GemmParams params = {map, map, map, 1};
    hopper::LaunchShape shape;
    shape.threads = toy::gemm_threads;
    shape.shared_bytes = sizeof(toy::GemmShared<hopper::bfloat16>);
    const emulator::WithSchedule with({seed, emulator::Policy::random});
    try {
      static_cast<void>(hopper::launch(toy::gemm_kernel<hopper::bfloat16>, shape, params));
    } catch (const emulator::Fault& fault) {
      return std::string(fault.what());
    }
    return std::string();
  };
  EXPECT_NE(report(7), "");
  EXPECT_EQ(report(7), report(7));
}

}  // namespace
}  // namespace flash3
