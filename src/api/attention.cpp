// The public entry points: check the arguments, choose an engine, say why, run.
#include "flash3/attention.h"

#include <fmt/format.h>

#include <optional>

#include "core/check.h"
#include "cpu/engine.h"
#include "reference/reference.h"
#ifdef FLASH3_HAS_CUDA
#include "forward/engine.h"
#endif

namespace flash3 {
namespace {

// The Hopper kernels, where they are built in.
#ifdef FLASH3_HAS_CUDA
std::optional<std::string> cuda_refusal(const core::ForwardProblem& problem) {
  return forward_kernels::refusal(problem);
}
std::optional<std::string> cuda_refusal(const core::BackwardProblem&) { return "it has no backward kernels yet"; }

void plan_cuda(const core::ForwardProblem& problem, Plan& plan) {
  plan::ForwardPlan chosen = forward_kernels::plan_for(problem);
  plan.kernel = chosen.describe(problem.dtype);
  plan.reasons.insert(plan.reasons.end(), chosen.reasons.begin(), chosen.reasons.end());
}
void forward_cuda(const core::ForwardProblem& problem, void* stream) { forward_kernels::forward(problem, stream); }
#else
std::optional<std::string> cuda_refusal(const core::Problem&) { return "this build has no CUDA kernels"; }
void plan_cuda(const core::ForwardProblem&, Plan&) {}
void forward_cuda(const core::ForwardProblem&, void*) {}
#endif
void plan_cuda(const core::BackwardProblem&, Plan&) {}

std::optional<std::string> emulator_refusal(const core::Problem&) { return "this build has no emulated kernels yet"; }

template <class AnyProblem>
std::optional<std::string> refusal(Engine engine, const AnyProblem& problem) {
  switch (engine) {
    case Engine::cuda:
      return cuda_refusal(problem);
    case Engine::cpu:
      return cpu::refusal(problem);
    case Engine::reference:
      return reference::refusal(problem);
    case Engine::emulator:
      return emulator_refusal(problem);
    case Engine::automatic:
      break;
  }
  return fmt::format("engine code {} is unknown", static_cast<int>(engine));
}

struct Choice {
  Engine engine;
  std::string reason;
  std::vector<Refusal> refused;
};

// The reference and the emulator are for checking: they run only when asked for by name.
template <class AnyProblem>
Choice choose(const AnyProblem& problem, const Execution& execution) {
  if (execution.num_threads < 0) {
    throw InvalidArgument("num_threads",
                          fmt::format("is {}, accepted is 0 (every core) or more", execution.num_threads));
  }
  if (execution.engine != Engine::automatic) {
    if (auto reason = refusal(execution.engine, problem)) {
      throw Unsupported(fmt::format("engine {} cannot run this problem: {}", name_of(execution.engine), *reason));
    }
    return {execution.engine, "asked for by name", {}};
  }
  Choice choice{Engine::automatic, "", {}};
  for (Engine engine : {Engine::cuda, Engine::cpu}) {
    if (auto reason = refusal(engine, problem)) {
      choice.refused.push_back({engine, *reason});
    } else {
      choice.engine = engine;
      choice.reason =
          choice.refused.empty() ? "the fastest engine" : "the fastest engine that can run this problem here";
      return choice;
    }
  }
  std::string text = "no engine can run this problem:";
  for (const Refusal& r : choice.refused) text += fmt::format(" {} ({});", name_of(r.engine), r.reason);
  text.back() = '.';
  throw Unsupported(text);
}

template <class AnyProblem>
Plan make_plan(const AnyProblem& problem, const Execution& execution) {
  Choice choice = choose(problem, execution);
  Plan plan;
  plan.engine = choice.engine;
  plan.problem = problem.to_string();
  plan.flops = problem.flops();
  plan.reasons.push_back(std::move(choice.reason));
  plan.refused = std::move(choice.refused);
  if (plan.engine == Engine::cpu) {
    plan.kernel = cpu::describe(problem);
    plan.num_threads = cpu::threads_for(problem, execution.num_threads);
  } else if (plan.engine == Engine::cuda) {
    plan_cuda(problem, plan);
  } else {
    plan.kernel = "naive float64, one row at a time";
    plan.num_threads = reference::threads_for(problem, execution.num_threads);
  }
  return plan;
}

}  // namespace

std::string Plan::to_string() const {
  std::string text = fmt::format("problem  {}\nengine   {}\nkernel   {}\n", problem, name_of(engine), kernel);
  if (num_threads > 0) text += fmt::format("threads  {}\n", num_threads);
  text += fmt::format("flops    {:.4g}\n", flops);
  for (const std::string& reason : reasons) text += fmt::format("because  {}\n", reason);
  for (const Refusal& r : refused) text += fmt::format("not      {}: {}\n", name_of(r.engine), r.reason);
  return text;
}

Plan plan_forward(const ForwardArgs& args, const Execution& execution) {
  return make_plan(core::check(args), execution);
}

Plan plan_backward(const BackwardArgs& args, const Execution& execution) {
  return make_plan(core::check(args), execution);
}

void forward(const ForwardArgs& args, const Execution& execution) {
  const core::ForwardProblem problem = core::check(args);
  const Engine engine = choose(problem, execution).engine;
  if (engine == Engine::cuda) {
    forward_cuda(problem, execution.stream);
  } else if (engine == Engine::reference) {
    reference::forward(problem, execution.num_threads);
  } else {
    cpu::forward(problem, execution.num_threads);
  }
}

void backward(const BackwardArgs& args, const Execution& execution) {
  const core::BackwardProblem problem = core::check(args);
  if (choose(problem, execution).engine == Engine::reference) {
    reference::backward(problem, execution.num_threads);
  } else {
    cpu::backward(problem, execution.num_threads);
  }
}

}  // namespace flash3
