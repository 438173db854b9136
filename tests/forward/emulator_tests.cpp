// The forward kernels on the emulator: right results and no report, under every policy.
//
// Small problems that cross every tile boundary, each under two policies of five, in turn. FLASH3_SEEDS=n: n seeds of
// every policy; --gtest_filter picks cases.
#include <gtest/gtest.h>

#include <cstdlib>

#include "forward/emulator_machine.h"

namespace flash3::testing {
namespace {

// Every case for two kernels; for the others, whose source is the same, those in which the tile's shape matters.
std::vector<Case> small_cases() {
  std::vector<Case> cases;
  for (const Case& c : all_cases()) {
    const auto named = [&](const char* text) { return c.name.find(text) != std::string::npos; };
    if (named("many tiles")) continue;
    const bool all = named("bfloat16 128x128") || named("bfloat16 64x64");
    if (all || named("causal 391 on 130") || named("variable length, causal") || named("seqused, variable") ||
        named("NaN") || (named("other head_dim") && named("bfloat16"))) {
      cases.push_back(c);
    }
    // Mending a row after a NaN goes key by key, and every step of it costs 32 switches of fibers a warp.
    if (named("NaN") && !cases.empty() && cases.back().name == c.name) {
      Case& few = cases.back();
      few.heads_q = few.heads_kv = 1;
      few.lengths_q = few.lengths_kv = {150};
      few.nan_key_share = 0.02;
    }
  }
  return cases;
}

struct Numbered {
  std::size_t number;
  Case problem;
};
void PrintTo(const Numbered& numbered, std::ostream* out) { *out << numbered.problem.name; }
std::vector<Numbered> numbered_cases() {
  std::vector<Numbered> numbered;
  for (Case& c : small_cases()) numbered.push_back({numbered.size(), std::move(c)});
  return numbered;
}

std::vector<emulator::Schedule> schedules(std::size_t number) {
  std::vector<emulator::Schedule> chosen;
  if (const char* wish = std::getenv("FLASH3_SEEDS")) {
    for (std::uint64_t seed = 1; seed <= std::strtoull(wish, nullptr, 10); ++seed) {
      for (const emulator::Policy policy : emulator::all_policies) chosen.push_back({seed, policy});
    }
    return chosen;
  }
  constexpr std::size_t policies = std::size(emulator::all_policies);
  for (std::size_t i = 0; i < 2; ++i)
    chosen.push_back({number + 1, emulator::all_policies[(number + 2 * i) % policies]});
  return chosen;
}

class ForwardOnEmulator : public ::testing::TestWithParam<Numbered> {};

TEST_P(ForwardOnEmulator, IsRightAndClean) {
  const auto& [number, problem] = GetParam();
  for (const emulator::Schedule& schedule : schedules(number)) {
    Emulator machine(schedule);
    const Outcome outcome = run(problem, machine);
    ASSERT_TRUE(outcome.ok) << problem.name << ", " << to_string(schedule.policy) << ", seed " << schedule.seed << ": "
                            << outcome.why;
  }
}

std::string test_name(const ::testing::TestParamInfo<Numbered>& info) {
  std::string name = info.param.problem.name;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cases, ForwardOnEmulator, ::testing::ValuesIn(numbered_cases()), test_name);

}  // namespace
}  // namespace flash3::testing
