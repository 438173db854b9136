// Where tensors of a test live: guarded host memory, and the seam through which an engine with memory of its own is
// fed.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "flash3/tensor.h"

namespace flash3::test {

// NaN in every floating-point dtype at any alignment, and -1 as a length.
inline constexpr std::byte poison{0xff};

// Host memory between two pages that may not be touched, filled with poison. The bytes lie against one of the pages, so
// that a read or write beyond that end crashes; the slack at the other end is watched.
class GuardedBuffer {
 public:
  enum class Against { end, start };

  GuardedBuffer(std::size_t bytes, Against side);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  std::byte* data() { return bytes_.data(); }
  // Everything between the guard pages: the bytes asked for, and the slack.
  std::span<std::byte> whole() { return whole_; }

 private:
  std::span<std::byte> mapped_, whole_, bytes_;
};

// Memory that an engine works in and the host cannot read. An engine that works in host memory has none.
class MemorySpace {
 public:
  virtual ~MemorySpace() = default;
  virtual Device device() const = 0;
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* data) noexcept = 0;
  virtual void copy_in(void* to, const void* host, std::size_t bytes) = 0;
  virtual void copy_out(void* host, const void* from, std::size_t bytes) = 0;
};

// Takes buffers into a memory space for the length of one call. With no space (nullptr) it hands out the host's own.
class Stay {
 public:
  explicit Stay(MemorySpace* space) : space_(space) {}
  ~Stay();
  Stay(const Stay&) = delete;
  Stay& operator=(const Stay&) = delete;

  // The view of a host buffer's bytes, where the engine finds them. Buffers are taken whole, guards and all, so that
  // strays are seen when they come back.
  TensorView place(GuardedBuffer& buffer, const TensorView& host_view);

  // Brings every buffer back to the host.
  void fetch();

 private:
  struct Guest {
    GuardedBuffer* buffer;
    std::byte* copy;
  };
  MemorySpace* space_;
  std::vector<Guest> guests_;
};

}  // namespace flash3::test
