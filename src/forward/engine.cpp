// The CUDA side of the engine: devices, and the current device while launching.
#include "forward/engine.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <memory>
#include <mutex>
#include <vector>

#include "forward/counters.h"
#include "forward/launch.h"

namespace flash3::forward_kernels {
namespace {

struct Device {
  plan::Gpu gpu;
  std::string why_not;  // empty: usable
  Counters counters;
};

void query(int index, Device& device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) {
    device.why_not = fmt::format("cuda:{} cannot be used: {}", index, cudaGetErrorString(error));
    return;
  }
  device.gpu.name = properties.name;
  device.gpu.multiprocessors = properties.multiProcessorCount;
  device.gpu.l2_bytes = properties.l2CacheSize;
  device.gpu.major = properties.major;
  device.gpu.minor = properties.minor;
  if (properties.major != 9 || properties.minor != 0) {
    device.why_not = fmt::format("cuda:{} is a {} (compute capability {}.{}); the kernels are built for Hopper (9.0)",
                                 index, properties.name, properties.major, properties.minor);
  }
}

// Looked up once a process: devices do not come and go.
Device& device_at(int index) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Device>> devices;
  const std::lock_guard lock(mutex);
  const auto i = static_cast<std::size_t>(index);
  if (devices.size() <= i) devices.resize(i + 1);
  if (!devices[i]) {
    devices[i] = std::make_unique<Device>();
    query(index, *devices[i]);
  }
  return *devices[i];
}

// Makes a device current, and gives the caller's back.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index) {
    if (cudaGetDevice(&previous_) != cudaSuccess) throw DeviceError("no CUDA device is current");
    if (previous_ != index) switch_to(index);
    index_ = index;
  }
  ~CurrentDevice() {
    if (previous_ != index_) static_cast<void>(cudaSetDevice(previous_));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  static void switch_to(int index) {
    const cudaError_t error = cudaSetDevice(index);
    if (error != cudaSuccess) {
      throw DeviceError(fmt::format("cuda:{} cannot be made current: {}", index, cudaGetErrorString(error)));
    }
  }

  int previous_ = 0;
  int index_ = 0;
};

}  // namespace

std::optional<std::string> refusal(const core::ForwardProblem& problem) {
  if (problem.device.type != DeviceType::cuda) return "the tensors are not on a GPU";
  if (auto why = plan::forward_refusal(problem)) return why;
  const Device& device = device_at(problem.device.index);
  if (!device.why_not.empty()) return device.why_not;
  return std::nullopt;
}

plan::ForwardPlan plan_for(const core::ForwardProblem& problem) {
  return plan::plan_forward(problem, device_at(problem.device.index).gpu);
}

void forward(const core::ForwardProblem& problem, void* stream) {
  const plan::ForwardPlan chosen = plan_for(problem);
  if (chosen.tiles == 0) return;
  const CurrentDevice current(problem.device.index);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  launch(problem, chosen, device_at(problem.device.index).counters.of(cuda_stream), cuda_stream);
}

}  // namespace flash3::forward_kernels
