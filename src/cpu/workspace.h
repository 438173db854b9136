// Memory for one call: aligned, uninitialised, freed with its owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

namespace flash3::cpu {

inline constexpr std::size_t workspace_alignment = 64;

struct WorkspaceDelete {
  void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(workspace_alignment)); }
};

// Regions laid out first, then allocated in one piece: reserve() each, allocate(), then at().
class Workspace {
 public:
  // Room for `count` elements of T; returns its name.
  template <class T>
  std::size_t reserve(std::int64_t count) {
    const std::size_t offset = size_;
    std::size_t bytes = 0;
    if (__builtin_mul_overflow(static_cast<std::size_t>(count), sizeof(T), &bytes) ||
        __builtin_add_overflow(size_, bytes, &size_) || size_ > std::numeric_limits<std::size_t>::max() / 4) {
      throw std::bad_alloc();
    }
    size_ = (size_ + workspace_alignment - 1) / workspace_alignment * workspace_alignment;
    return offset;
  }

  // `copies` times the reserved regions.
  void allocate(std::int64_t copies) {
    std::size_t bytes = 0;
    if (__builtin_mul_overflow(size_, static_cast<std::size_t>(copies), &bytes)) throw std::bad_alloc();
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(workspace_alignment))));
  }

  template <class T>
  T* at(std::size_t region, std::int64_t copy) const {
    return reinterpret_cast<T*>(data_.get() + static_cast<std::size_t>(copy) * size_ + region);
  }

 private:
  std::size_t size_ = 0;
  std::unique_ptr<std::byte, WorkspaceDelete> data_;
};

}  // namespace flash3::cpu
