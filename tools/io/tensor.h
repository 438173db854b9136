// A tensor together with what keeps its memory alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flash3/tensor.h"

namespace flash3::tools {

using Shape = std::vector<std::int64_t>;

// "(2, 512, 12, 32)"
std::string text_of(std::span<const std::int64_t> shape);

// Product of the extents, or -1 if an extent is negative or 64 bits cannot count the elements.
std::int64_t count_elements(std::span<const std::int64_t> shape);

// A dense view. At most six dimensions.
template <class Pointer>
BasicTensorView<Pointer> dense_view(Pointer data, DType dtype, std::span<const std::int64_t> shape) {
  BasicTensorView<Pointer> view;
  if (shape.size() > static_cast<std::size_t>(view.max_rank)) throw InvalidArgument("shape", "more than 6 dimensions");
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    view.shape[d] = shape[d];
    view.strides[d] = stride;
    stride *= shape[d];
  }
  return view;
}

// What a file holds of one tensor: bytes of the file, or an aligned copy of them.
struct InputTensor {
  ConstTensorView view;
  std::shared_ptr<const void> memory;
};

// Memory of our own, zeroed, aligned to 64 bytes.
struct OwnedTensor {
  TensorView view;
  std::shared_ptr<void> memory;

  OwnedTensor() = default;
  OwnedTensor(DType dtype, std::span<const std::int64_t> shape);
  OwnedTensor(DType dtype, std::initializer_list<std::int64_t> shape)
      : OwnedTensor(dtype, std::span(shape.begin(), shape.size())) {}

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(view.data), static_cast<std::size_t>(view.numel()) * size_of(view.dtype)};
  }
};

std::shared_ptr<void> allocate_aligned(std::size_t bytes);

}  // namespace flash3::tools
