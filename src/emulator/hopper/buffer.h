// Owns memory of the emulated machine: host memory that kernels may touch.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "emulator/memory.h"
#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline void finish() {}

template <class T>
class Buffer {
 public:
  Buffer(const std::vector<T>& values, const std::string& name)
      : count_(values.size()),
        storage_(std::make_unique<unsigned char[]>(count_ * sizeof(T) + alignment)),
        data_(reinterpret_cast<T*>(aligned(storage_.get()))),
        registered_(data_, count_ * sizeof(T), name) {
    std::copy(values.begin(), values.end(), data_);
  }

  T* data() const { return data_; }
  std::size_t size() const { return count_; }
  std::vector<T> get() const { return std::vector<T>(data_, data_ + count_); }

 private:
  static constexpr std::size_t alignment = 256;  // cudaMalloc's
  static std::uintptr_t aligned(void* p) {
    return (reinterpret_cast<std::uintptr_t>(p) + alignment - 1) / alignment * alignment;
  }

  std::size_t count_;
  std::unique_ptr<unsigned char[]> storage_;
  T* data_;
  emulator::Registered registered_;
};

}  // namespace flash3::hopper::inline FLASH3_MACHINE
