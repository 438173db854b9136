// The public entry points of merging: check, refuse what no engine can do, run.
#include "flash3/merge.h"

#include <fmt/format.h>

#include "combine/merge.h"
#include "core/check.h"

namespace flash3 {
namespace {

void refuse_what_cannot_run(const core::MergeShape& problem, const Execution& execution) {
  if (execution.num_threads < 0) {
    throw InvalidArgument("num_threads",
                          fmt::format("is {}, accepted is 0 (every core) or more", execution.num_threads));
  }
  if (execution.engine != Engine::automatic && execution.engine != Engine::cpu) {
    throw Unsupported(fmt::format("engine {} cannot merge; engine cpu can", name_of(execution.engine)));
  }
  if (auto reason = combine::refusal(problem)) {
    throw Unsupported(fmt::format("engine cpu cannot merge this: {}", *reason));
  }
}

}  // namespace

void merge(const MergeArgs& args, const Execution& execution) {
  const core::MergeProblem problem = core::check(args);
  refuse_what_cannot_run(problem, execution);
  combine::merge(problem, execution.num_threads);
}

void merge_backward(const MergeBackwardArgs& args, const Execution& execution) {
  const core::MergeBackwardProblem problem = core::check(args);
  refuse_what_cannot_run(problem, execution);
  combine::merge_backward(problem, execution.num_threads);
}

}  // namespace flash3
