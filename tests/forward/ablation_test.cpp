// The ablated kernels on the emulator: as right and as clean as the whole one, under every policy.
#include <gtest/gtest.h>

#include <vector>

#include "forward/ablation.h"
#include "forward/emulator_machine.h"
#include "forward/start.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

// What launch.cpp starts is what a test has chosen, of bfloat16 with head_dim 64, 128 or 192.
Techniques chosen;

template <class C>
hopper::LaunchStatus start_chosen(const Params& params, int blocks) {
  if (!chosen.specialised) {
    return start_ablated<Ablated<C, Techniques{.specialised = false}>>(params, blocks, {});
  }
  if (!chosen.pipelined) return start_ablated<Ablated<C, Techniques{.pipelined = false}>>(params, blocks, {});
  if (!chosen.overlapping) return start_ablated<Ablated<C, Techniques{.overlapping = false}>>(params, blocks, {});
  return start_ablated<Ablated<C, Techniques{}>>(params, blocks, {});
}

#define FLASH3_FORWARD(head_dim, head_dim_v, warpgroups, block_kv, k_stages, v_stages, q_stages, reason)         \
  template <>                                                                                                    \
  hopper::LaunchStatus start<hopper::bfloat16, head_dim, head_dim_v, warpgroups, block_kv>(                      \
      const Params& params, int blocks, hopper::Stream) {                                                        \
    if constexpr (head_dim == head_dim_v && (head_dim == 64 || head_dim == 128 || head_dim == 192)) {            \
      return start_chosen<Config<hopper::bfloat16, head_dim, head_dim_v, warpgroups, block_kv>>(params, blocks); \
    }                                                                                                            \
    return {"not in this test"};                                                                                 \
  }                                                                                                              \
  template <>                                                                                                    \
  hopper::LaunchStatus start<hopper::float16, head_dim, head_dim_v, warpgroups, block_kv>(const Params&, int,    \
                                                                                          hopper::Stream) {      \
    return {"not in this test"};                                                                                 \
  }
#include "plan/kernels.def"
#undef FLASH3_FORWARD

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE

namespace flash3::testing {
namespace {

using forward_kernels::Techniques;

void expect_right(const Techniques& techniques) {
  forward_kernels::chosen = techniques;
  for (const std::int64_t head_dim : {64, 128, 192}) {
    Case causal;
    causal.name = "causal, rows that see nothing";
    causal.head_dim = causal.head_dim_v = head_dim;
    causal.lengths_q = {391};
    causal.lengths_kv = {330};
    causal.options.causal = true;
    Case variable = causal;
    variable.name = "variable length, window";
    variable.variable_q = variable.variable_kv = true;
    variable.heads_q = 4;
    variable.heads_kv = 1;
    variable.lengths_q = {1, 0, 140, 70};
    variable.lengths_kv = {5, 3, 400, 0};
    variable.options.window_left = 100;
    std::vector<Case> cases = {variable, causal};
    if (head_dim == 128) {  // has a tile for long rows, which is the one that flash3 ablate measures
      cases.push_back(causal);
      cases.back().name = "long rows";
      cases.back().lengths_kv = {1100};
    }
    std::uint64_t seed = 0;
    for (const emulator::Policy policy : emulator::all_policies) {
      Emulator machine({++seed, policy});
      const Case& c = cases[seed % cases.size()];
      const Outcome outcome = run(c, machine);
      ASSERT_TRUE(outcome.ok) << "head_dim " << head_dim << ", " << c.name << ", " << to_string(policy) << ": "
                              << outcome.why;
    }
  }
}

TEST(Ablation, NothingOff) { expect_right({}); }
TEST(Ablation, NoWarpSpecialisation) { expect_right({.specialised = false}); }
TEST(Ablation, NoPipelining) { expect_right({.pipelined = false}); }
TEST(Ablation, NoOverlapOfWarpgroups) { expect_right({.overlapping = false}); }

}  // namespace
}  // namespace flash3::testing
