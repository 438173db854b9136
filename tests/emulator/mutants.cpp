// Runs one mutant: the emulator must report it on the first seed under every policy, as one of the kinds that it
// expects, and name the lines. The sound kernels (nothing expected) must run without a report.
//
//   emulator_mutants NAME
#include "emulator/mutants.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <regex>
#include <stdexcept>
#include <vector>

#include "core/half.h"
#include "emulator/memory.h"
#include "forward/launch.h"
#include "forward/start.h"

namespace flash3::mutants {
namespace {

std::map<std::string, Mutant>& all() {
  static std::map<std::string, Mutant> mutants;
  return mutants;
}

Start current = nullptr;

struct Tensor {
  Tensor(int rows_, int heads_, int head_dim_, const char* name, emulator::Access access)
      : heads(heads_),
        head_dim(head_dim_),
        bits(static_cast<std::size_t>(rows_ * heads_ * head_dim_)),
        known(bits.data(), bits.size() * 2, name, access) {
    // Not the same numbers in two tensors: a query would then see itself best of all, and no row rise later.
    std::mt19937 dice(static_cast<unsigned>(name[0]));
    std::normal_distribution<float> normal;
    for (auto& b : bits) b = core::to_bfloat16(normal(dice)).bits;
  }
  template <class Pointer>
  void describe(core::BasicOperand<Pointer>& operand) {
    operand.data = bits.data();
    operand.dtype = DType::bfloat16;
    operand.batch_stride = static_cast<std::int64_t>(bits.size());
    operand.seq_stride = heads * head_dim;
    operand.head_stride = head_dim;
  }
  int heads, head_dim;
  std::vector<std::uint16_t> bits;
  emulator::Registered known;
};

void run_problem(int head_dim, int seqlen_kv) {
  constexpr int seqlen_q = 300, heads = 3;
  Tensor query(seqlen_q, heads, head_dim, "query", emulator::Access::read),
      key(seqlen_kv, heads, head_dim, "key", emulator::Access::read),
      value(seqlen_kv, heads, head_dim, "value", emulator::Access::read),
      out(seqlen_q, heads, head_dim, "out", emulator::Access::read_write);
  std::vector<float> lse(static_cast<std::size_t>(heads * seqlen_q));
  forward_kernels::TileCounter counter{0, 0};
  const emulator::Registered known_lse(lse.data(), lse.size() * 4, "lse"),
      known_counter(&counter, sizeof counter, "counter");

  core::ForwardProblem problem;
  problem.dtype = DType::bfloat16;
  problem.batch = 1;
  problem.heads_q = problem.heads_kv = heads;
  problem.head_dim = problem.head_dim_v = head_dim;
  problem.max_seqlen_q = problem.rows_q = seqlen_q;
  problem.max_seqlen_kv = problem.rows_kv = seqlen_kv;
  problem.softmax_scale = 1 / std::sqrt(static_cast<double>(head_dim));
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
  forward_kernels::launch(problem, plan::plan_forward(problem, gpu), &counter, nullptr);
}

// What is missing in a report, or nothing: both lines of two accesses that conflict, a line of everything else.
std::string lacks(const emulator::Fault& fault) {
  static const std::regex place("[a-z_/]+\\.(h|cpp):[1-9][0-9]*");
  const std::string text = fault.what();
  const auto places = std::distance(std::sregex_iterator(text.begin(), text.end(), place), std::sregex_iterator());
  const bool two = fault.kind() == emulator::FaultKind::race && text.find("nothing orders one before") != text.npos;
  return places < (two ? 2 : 1) ? "the report names no line" : "";
}

int run(const Mutant& mutant) {
  int wrong = 0;
  for (const emulator::Policy policy : emulator::all_policies) {
    try {
      const emulator::WithSchedule with({1, policy});
      mutant.run();
      std::printf("%s: not reported\n", to_string(policy));
      wrong += !mutant.expected.empty();
    } catch (const emulator::Fault& fault) {
      const bool expected = mutant.expected.count(fault.kind()) > 0;
      const std::string lacking = lacks(fault);
      std::printf("%s%s%s\n", expected ? "" : "not expected: ", fault.what(), lacking.c_str());
      wrong += !expected || !lacking.empty();
    }
  }
  return wrong == 0 ? 0 : 1;
}

}  // namespace

Register::Register(std::string name, std::set<emulator::FaultKind> expected, std::function<void()> run) {
  all().emplace(std::move(name), Mutant{std::move(expected), std::move(run)});
}

void run_forward(int head_dim, Start start) {
  current = start;
  run_problem(head_dim, 300);
  run_problem(head_dim, 60);
}

}  // namespace flash3::mutants

namespace flash3::forward_kernels::inline FLASH3_MACHINE {

// Whichever kernel launch.cpp chooses: the mutant is started, which is compiled for that head_dim.
#define FLASH3_FORWARD(head_dim, head_dim_v, warpgroups, block_kv, k_stages, v_stages, q_stages, reason)      \
  template <>                                                                                                 \
  hopper::LaunchStatus start<hopper::bfloat16, head_dim, head_dim_v, warpgroups, block_kv>(                   \
      const Params& params, int blocks, hopper::Stream) {                                                     \
    return mutants::current(params, blocks);                                                                  \
  }                                                                                                           \
  template <>                                                                                                 \
  hopper::LaunchStatus start<hopper::float16, head_dim, head_dim_v, warpgroups, block_kv>(const Params&, int, \
                                                                                          hopper::Stream) {   \
    return {"mutants are bfloat16"};                                                                          \
  }
#include "plan/kernels.def"
#undef FLASH3_FORWARD

}  // namespace flash3::forward_kernels::inline FLASH3_MACHINE

int main(int argc, char** argv) {
  using flash3::mutants::all;
  const auto found = argc == 2 ? all().find(argv[1]) : all().end();
  if (found == all().end()) {
    std::printf("usage: emulator_mutants NAME; names are:\n");
    for (const auto& [name, mutant] : all()) std::printf("  %s\n", name.c_str());
    return 2;
  }
  return flash3::mutants::run(found->second);
}
