// Tensors that own their memory.
#include "io/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <new>

namespace flash3::tools {

std::string text_of(std::span<const std::int64_t> shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

std::int64_t count_elements(std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  bool empty = false;
  for (std::int64_t extent : shape) {
    if (extent < 0) return -1;
    if (extent == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(count, extent, &count)) {
      return -1;
    }
  }
  return empty ? 0 : count;
}

std::shared_ptr<void> allocate_aligned(std::size_t bytes) {
  constexpr std::align_val_t alignment{64};
  void* memory = ::operator new(bytes == 0 ? 1 : bytes, alignment);
  return {memory, [](void* p) { ::operator delete(p, alignment); }};
}

OwnedTensor::OwnedTensor(DType dtype, std::span<const std::int64_t> shape) {
  const std::int64_t elements = count_elements(shape);
  std::int64_t size = 0;
  if (elements < 0 || __builtin_mul_overflow(elements, static_cast<std::int64_t>(size_of(dtype)), &size)) {
    throw std::bad_alloc();
  }
  memory = allocate_aligned(static_cast<std::size_t>(size));
  std::memset(memory.get(), 0, static_cast<std::size_t>(size));
  view = dense_view(memory.get(), dtype, shape);
}

}  // namespace flash3::tools
