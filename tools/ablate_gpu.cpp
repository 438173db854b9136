// The measurement behind flash3 ablate. In diagnostic builds only.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "ablate.h"
#include "io/error.h"
#include "random.h"

namespace flash3::tools {
namespace {

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw RuntimeFailure(fmt::format("{}: {}", what, cudaGetErrorString(error)));
}

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) { require(cudaMalloc(&data_, bytes), "memory of the GPU"); }
  ~DeviceMemory() { static_cast<void>(cudaFree(data_)); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* data() const { return data_; }
  void fill(int byte) const { require(cudaMemsetAsync(data_, byte, bytes_), "memory of the GPU"); }

  // float16 from N(0, 1), a pattern that repeats.
  void fill_normal(unsigned seed) const {
    std::vector<core::float16> pattern(std::min<std::size_t>(bytes_ / 2, (1 << 20) + 128));
    Random random(seed);
    tools::fill_normal(TensorView(pattern.data(), DType::float16, {static_cast<std::int64_t>(pattern.size())}), random);
    for (std::size_t at = 0; at < bytes_; at += pattern.size() * 2) {
      require(cudaMemcpy(static_cast<char*>(data_) + at, pattern.data(), std::min(pattern.size() * 2, bytes_ - at),
                         cudaMemcpyHostToDevice),
              "inputs");
    }
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

struct Event {
  Event() { require(cudaEventCreate(&event), "an event"); }
  ~Event() { static_cast<void>(cudaEventDestroy(event)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

}  // namespace

std::vector<double> time_ablations(const AblationProblem& problem, const std::vector<std::string>& values) {
  const auto bytes = static_cast<std::size_t>(problem.batch * problem.seqlen * problem.heads * 128 * 2);
  const DeviceMemory query(bytes), key(bytes), value(bytes), out(bytes), flush(std::size_t{256} << 20);
  query.fill_normal(1);
  key.fill_normal(2);
  value.fill_normal(3);
  const auto view = [&](const DeviceMemory& memory) {
    return TensorView(memory.data(), DType::float16, {problem.batch, problem.seqlen, problem.heads, 128},
                      Device{DeviceType::cuda, 0});
  };
  ForwardArgs args;
  args.query = view(query);
  args.key = view(key);
  args.value = view(value);
  args.out = view(out);
  args.options.causal = problem.causal;
  Execution execution;
  execution.engine = Engine::cuda;

  const Event start, stop;
  std::vector<std::vector<double>> seconds(values.size());
  for (int run = -2; run < problem.runs; ++run) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      ::setenv(ablation_variable, values[i].c_str(), 1);
      flush.fill(run & 0xff);
      require(cudaEventRecord(start.event), "timing");
      forward(args, execution);
      require(cudaEventRecord(stop.event), "timing");
      require(cudaEventSynchronize(stop.event), "the kernel");
      float milliseconds = 0;
      require(cudaEventElapsedTime(&milliseconds, start.event, stop.event), "timing");
      if (run >= 0) seconds[i].push_back(milliseconds * 1e-3);
    }
  }
  ::unsetenv(ablation_variable);
  std::vector<double> medians;
  for (auto& times : seconds) {
    std::sort(times.begin(), times.end());
    medians.push_back(times[times.size() / 2]);
  }
  return medians;
}

}  // namespace flash3::tools
