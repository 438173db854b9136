// The forward kernels on the emulator: right results and no report, under every policy.
//
// Small problems that cross every tile boundary, each on several schedules. FLASH3_SEEDS says how many seeds a policy
// (default 1); --gtest_filter picks cases.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <memory>

#include "emulator/memory.h"
#include "emulator/report.h"
#include "forward/differential.h"
#include "forward/launch.h"
#include "plan/forward_plan.h"

namespace flash3::testing {
namespace {

class Emulator final : public Machine {
 public:
  explicit Emulator(emulator::Schedule schedule) : schedule_(schedule) {}

  DeviceType device() const override { return DeviceType::cpu; }
  void* allocate(std::size_t bytes, bool kernels_write) override {
    void* memory = std::aligned_alloc(128, (bytes + 255) / 128 * 128);
    memory_[memory] = std::make_unique<emulator::Registered>(
        memory, bytes + 16, "a tensor", kernels_write ? emulator::Access::read_write : emulator::Access::read);
    return memory;
  }
  void release(void* memory) override {
    memory_.erase(memory);
    std::free(memory);
  }
  void upload(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void forward(const ForwardArgs& args) override {
    const core::ForwardProblem problem = core::check(args);
    if (auto why = plan::forward_refusal(problem)) throw Unsupported(*why);
    plan::Gpu gpu;
    gpu.multiprocessors = 3;
    forward_kernels::TileCounter counter{0, 0};
    const emulator::Registered registered(&counter, sizeof counter, "the tile counter");
    const emulator::WithSchedule with(schedule_);
    forward_kernels::launch(problem, plan::plan_forward(problem, gpu), &counter, {});
    if (counter.next != 0 || counter.finished != 0) throw DeviceError("the tile counter was not set back");
  }

 private:
  emulator::Schedule schedule_;
  std::map<void*, std::unique_ptr<emulator::Registered>> memory_;
};

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
  }
  return cases;
}

class ForwardOnEmulator : public ::testing::TestWithParam<Case> {};

TEST_P(ForwardOnEmulator, IsRightAndClean) {
  const char* wish = std::getenv("FLASH3_SEEDS");
  const std::uint64_t seeds = wish != nullptr ? std::strtoull(wish, nullptr, 10) : 1;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    for (const emulator::Policy policy : emulator::all_policies) {
      Emulator machine({seed, policy});
      const Outcome outcome = run(GetParam(), machine);
      ASSERT_TRUE(outcome.ok) << GetParam().name << ", " << to_string(policy) << ", seed " << seed << ": "
                              << outcome.why;
      if (wish == nullptr) return;
    }
  }
}

std::string test_name(const ::testing::TestParamInfo<Case>& info) {
  std::string name = info.param.name;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cases, ForwardOnEmulator, ::testing::ValuesIn(small_cases()), test_name);

}  // namespace
}  // namespace flash3::testing
