// The CPU engine's doors: what it takes, how many threads it wants, and what it says of itself.
#include "cpu/engine.h"

#include <fmt/format.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/threads.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace flash3::cpu {
namespace {

// Operations that are worth a thread: below this, starting one takes longer than the work.
constexpr double flops_per_thread = 4e6;

int threads_for_flops(double flops, std::int64_t pieces, int wished) {
  const int most = wished > 0 ? wished : available_cores();
  const double worth = std::min(flops / flops_per_thread, static_cast<double>(pieces));
  return std::max(1, static_cast<int>(std::min(worth, static_cast<double>(most))));
}

std::string describe(const KernelInfo& info, int rows, int keys) {
  return fmt::format("{}, {} products, tiles of {} query rows x {} keys", info.instructions, info.products, rows, keys);
}

}  // namespace

int available_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::optional<std::string> refusal(const core::Problem& problem) {
  if (problem.device.type != DeviceType::cpu) return fmt::format("the tensors are on {}", name_of(problem.device));
  switch (problem.dtype) {
    case DType::float32:
    case DType::float16:
    case DType::bfloat16:
      return std::nullopt;
    default:
      return fmt::format("dtype {} is not float32, float16 or bfloat16", name_of(problem.dtype));
  }
}

int threads_for(const core::ForwardProblem& problem, int num_threads) {
  const std::int64_t strip = kernel_info(problem.dtype).strip;
  const std::int64_t rows = problem.max_seqlen_q * problem.group();
  return threads_for_flops(problem.flops(), problem.batch * problem.heads_kv * ((rows + strip - 1) / strip),
                           num_threads);
}

int threads_for(const core::BackwardProblem& problem, int num_threads) {
  return threads_for_flops(problem.flops(), problem.batch * problem.heads_kv * problem.max_seqlen_kv, num_threads);
}

std::string describe(const core::ForwardProblem& problem) {
  const KernelInfo info = kernel_info(problem.dtype);
  return describe(info, info.strip, info.forward_keys);
}

std::string describe(const core::BackwardProblem& problem) {
  const KernelInfo info = kernel_info(problem.dtype);
  return describe(info, info.backward_rows, info.backward_keys);
}

void forward(const core::ForwardProblem& problem, int num_threads) {
  run_forward_kernel(problem, threads_for(problem, num_threads));
}

void backward(const core::BackwardProblem& problem, int num_threads) {
  run_backward_kernel(problem, threads_for(problem, num_threads));
}

}  // namespace flash3::cpu
