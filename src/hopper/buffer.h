// Owns memory of the machine that kernels run on, for tests and measurements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// Throws what CUDA says if it is not success.
inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Waits for everything launched so far; throws if any of it failed.
inline void finish() { check_cuda(cudaDeviceSynchronize()); }

// An array in the machine's memory.
template <class T>
class Buffer {
 public:
  // `name` is for reports.
  Buffer(const std::vector<T>& values, const std::string& name) : count_(values.size()) {
    static_cast<void>(name);
    check_cuda(cudaMalloc(&data_, count_ * sizeof(T)));
    check_cuda(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  std::size_t size() const { return count_; }

  std::vector<T> get() const {
    std::vector<T> values(count_);
    check_cuda(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

}  // namespace flash3::hopper::inline FLASH3_MACHINE
