// Runs a broken forward kernel on two small causal problems with several tiles a block, one of them with a single step
// a tile, where no other ring holds up who takes a stage too early: the emulator must report it on the first seed under
// every policy, as one of the kinds that FLASH3_EXPECTED lists. The sound kernel (nothing expected) must run without a
// report.
#include <cmath>
#include <cstdio>
#include <random>
#include <set>
#include <vector>

#include "core/half.h"
#include "emulator/memory.h"
#include "emulator/report.h"
#include "forward/kernel.h"
#include "forward/launch.h"
#include "forward/start.h"

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

// Only one kernel is broken, and compiled: bfloat16, FLASH3_HEAD_DIM.
template <class T, int head_dim, int head_dim_v>
hopper::LaunchStatus start_if_compiled(const Params& params, int blocks) {
  if constexpr (hopper::is_bfloat16<T> && head_dim == FLASH3_HEAD_DIM && head_dim_v == FLASH3_HEAD_DIM) {
    using C = Config<T, head_dim, head_dim_v>;
    hopper::LaunchShape shape;
    shape.grid[0] = blocks;
    shape.threads = C::threads;
    shape.shared_bytes = sizeof(Shared<C>);
    return hopper::launch(forward_kernel<C>, shape, params);
  } else {
    return {"this kernel is not part of the test"};
  }
}

#define FLASH3_FORWARD(head_dim, head_dim_v, warpgroups, block_kv, stages, q_stages, reason)                     \
  template <>                                                                                                    \
  hopper::LaunchStatus start<hopper::bfloat16, head_dim, head_dim_v, block_kv>(const Params& params, int blocks, \
                                                                               hopper::Stream) {                 \
    return start_if_compiled<hopper::bfloat16, head_dim, head_dim_v>(params, blocks);                            \
  }                                                                                                              \
  template <>                                                                                                    \
  hopper::LaunchStatus start<hopper::float16, head_dim, head_dim_v, block_kv>(const Params& params, int blocks,  \
                                                                              hopper::Stream) {                  \
    return start_if_compiled<hopper::float16, head_dim, head_dim_v>(params, blocks);                             \
  }
#include "plan/kernels.def"
#undef FLASH3_FORWARD

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE

namespace flash3 {
namespace {

struct Tensor {
  Tensor(int heads_, int rows_, const char* name, emulator::Access access)
      : heads(heads_),
        bits(static_cast<std::size_t>(rows_ * heads_ * FLASH3_HEAD_DIM)),
        known(bits.data(), bits.size() * 2, name, access) {
    std::mt19937 dice(static_cast<unsigned>(rows_ + heads_));
    std::normal_distribution<float> normal;
    for (auto& b : bits) b = core::to_bfloat16(normal(dice)).bits;
  }
  template <class Pointer>
  void describe(core::BasicOperand<Pointer>& operand) {
    operand.data = bits.data();
    operand.dtype = DType::bfloat16;
    operand.batch_stride = static_cast<std::int64_t>(bits.size());
    operand.seq_stride = heads * FLASH3_HEAD_DIM;
    operand.head_stride = FLASH3_HEAD_DIM;
  }
  int heads;
  std::vector<std::uint16_t> bits;
  emulator::Registered known;
};

void run(const emulator::Schedule& schedule, int seqlen_kv) {
  constexpr int seqlen_q = 300, heads = 3;
  Tensor query(heads, seqlen_q, "query", emulator::Access::read), key(heads, seqlen_kv, "key", emulator::Access::read),
      value(heads, seqlen_kv, "value", emulator::Access::read),
      out(heads, seqlen_q, "out", emulator::Access::read_write);
  std::vector<float> lse(static_cast<std::size_t>(heads * seqlen_q));
  forward_kernels::TileCounter counter{0, 0};
  const emulator::Registered known_lse(lse.data(), lse.size() * 4, "lse"),
      known_counter(&counter, sizeof counter, "counter");

  core::ForwardProblem problem;
  problem.dtype = DType::bfloat16;
  problem.batch = 1;
  problem.heads_q = problem.heads_kv = heads;
  problem.head_dim = problem.head_dim_v = FLASH3_HEAD_DIM;
  problem.max_seqlen_q = problem.rows_q = seqlen_q;
  problem.max_seqlen_kv = problem.rows_kv = seqlen_kv;
  problem.softmax_scale = 1 / std::sqrt(static_cast<double>(FLASH3_HEAD_DIM));
  problem.window_right = 0;
  query.describe(problem.query);
  key.describe(problem.key);
  value.describe(problem.value);
  out.describe(problem.out);
  problem.lse.data = lse.data();
  problem.lse.batch_stride = heads * seqlen_q;
  problem.lse.head_stride = seqlen_q;
  problem.lse.seq_stride = 1;

  plan::Gpu gpu;
  gpu.multiprocessors = 2;
  const emulator::WithSchedule with(schedule);
  forward_kernels::launch(problem, plan::plan_forward(problem, gpu), &counter, nullptr);
}

}  // namespace
}  // namespace flash3

int main() {
  using namespace flash3;
  using enum emulator::FaultKind;
  const std::set<emulator::FaultKind> expected = {FLASH3_EXPECTED};
  int wrong = 0;
  for (const emulator::Policy policy : emulator::all_policies) {
    try {
      run({1, policy}, 300);
      run({1, policy}, 60);
      std::printf("%s: not reported\n", to_string(policy));
      wrong += !expected.empty();
    } catch (const emulator::Fault& fault) {
      const bool fine = expected.count(fault.kind()) > 0;
      std::printf("%s%s\n", fine ? "" : "not expected: ", fault.what());
      wrong += !fine;
    }
  }
  return wrong == 0 ? 0 : 1;
}
