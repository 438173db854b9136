// A GPU as a machine of the differential tests, and problems whose buffers stay there.
#pragma once

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <functional>

#include "forward/differential.h"

namespace flash3::testing {

inline void require(cudaError_t error) {
  if (error != cudaSuccess) {
    fmt::print(stderr, "CUDA: {}\n", cudaGetErrorString(error));
    std::fflush(nullptr);
    std::_Exit(3);
  }
}

class Gpu final : public Machine {
 public:
  // A kernel that has not ended after so many seconds ends the program (SIGALRM).
  explicit Gpu(unsigned seconds) : seconds_(seconds) {}

  DeviceType device() const override { return DeviceType::cuda; }
  void* allocate(std::size_t bytes, bool) override {
    void* memory = nullptr;
    require(cudaMalloc(&memory, bytes + 16));
    return memory;
  }
  void release(void* memory) override { cudaFree(memory); }
  void upload(void* to, const void* from, std::size_t bytes) override {
    require(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
  }
  void download(void* to, const void* from, std::size_t bytes) override {
    require(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  }
  void forward(const ForwardArgs& args) override {
    Execution execution;
    execution.engine = Engine::cuda;
    alarm(seconds_);
    flash3::forward(args, execution);
    require(cudaDeviceSynchronize());
    alarm(0);
  }

 private:
  unsigned seconds_;
};

// Memory of the device that is current when it is made.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) { require(cudaMalloc(&data_, bytes)); }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

class Stream {
 public:
  Stream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

inline std::vector<std::uint16_t> random_bfloat16(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(count);
  for (auto& v : values) v = encode(DType::bfloat16, normal(random));
  return values;
}

// (batch, rows, heads, head_dim), dense.
inline TensorView dense(const void* data, std::array<std::int64_t, 4> shape, int device = 0) {
  return {
      const_cast<void*>(data), DType::bfloat16, {shape[0], shape[1], shape[2], shape[3]}, {DeviceType::cuda, device}};
}

inline void enqueue_forward(const ForwardArgs& args, cudaStream_t stream) {
  Execution execution;
  execution.engine = Engine::cuda;
  execution.stream = stream;
  forward(args, execution);
}

// One causal problem of some heads whose buffers stay, on the device that is current when it is made.
class Repeated {
 public:
  Repeated(std::int64_t seqlen, std::int64_t heads, std::int64_t head_dim)
      : shape_{1, seqlen, heads, head_dim},
        elements_(static_cast<std::size_t>(seqlen * heads * head_dim)),
        inputs_{DeviceMemory(bytes()), DeviceMemory(bytes()), DeviceMemory(bytes())} {
    require(cudaGetDevice(&device_));
    for (unsigned i = 0; i < 3; ++i) {
      require(cudaMemcpy(inputs_[i].as(), host(i).data(), bytes(), cudaMemcpyHostToDevice));
    }
  }

  std::size_t bytes() const { return elements_ * 2; }
  int device() const { return device_; }
  void* input(std::size_t i) const { return inputs_[i].as(); }
  std::vector<std::uint16_t> host(unsigned i) const { return random_bfloat16(elements_, i + 1); }

  ForwardArgs arguments(void* out) const {
    ForwardArgs args;
    args.query = dense(input(0), shape_, device_);
    args.key = dense(input(1), shape_, device_);
    args.value = dense(input(2), shape_, device_);
    args.out = dense(out, shape_, device_);
    args.options.causal = true;
    return args;
  }
  void enqueue(void* out, cudaStream_t stream) const { enqueue_forward(arguments(out), stream); }

 private:
  std::array<std::int64_t, 4> shape_;
  std::size_t elements_;
  std::array<DeviceMemory, 3> inputs_;
  int device_ = 0;
};

inline std::vector<char> downloaded(const void* from, std::size_t bytes) {
  std::vector<char> values(bytes);
  require(cudaMemcpy(values.data(), from, bytes, cudaMemcpyDeviceToHost));
  return values;
}

// Runs `launch(run, out)` many times; every result must have the bits of the first. Empty, or what differed.
inline std::string all_equal(std::size_t bytes, int runs, const std::function<void(int, void*)>& launch) {
  void *out = nullptr, *landed = nullptr;
  require(cudaMalloc(&out, bytes));
  require(cudaMallocHost(&landed, bytes));
  std::vector<char> first;
  std::string difference;
  for (int run = 0; run < runs && difference.empty(); ++run) {
    require(cudaMemset(out, 0xff, bytes));
    require(cudaDeviceSynchronize());
    launch(run, out);
    require(cudaDeviceSynchronize());
    require(cudaMemcpy(landed, out, bytes, cudaMemcpyDeviceToHost));
    const char* got = static_cast<const char*>(landed);
    if (run == 0) {
      first.assign(got, got + bytes);
    } else if (std::memcmp(first.data(), got, bytes) != 0) {
      difference = fmt::format("run {} differs from the first", run);
    }
  }
  cudaFreeHost(landed);
  cudaFree(out);
  return difference;
}

}  // namespace flash3::testing
