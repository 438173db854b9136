/// \file
/// Tensors as flash3 sees them: non-owning views with a data type, a device, a shape and strides.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "flash3/error.h"
#include "flash3/export.h"

namespace flash3 {

/// Element types. Which of them a call takes, and on which engine, is said by the plan; nothing is converted silently.
enum class DType : std::uint8_t { float32, float16, bfloat16, float8_e4m3, float64, int32 };

/// Bytes of one element.
FLASH3_EXPORT std::size_t size_of(DType dtype) noexcept;

/// "float32", "bfloat16", ...
FLASH3_EXPORT std::string_view name_of(DType dtype) noexcept;

enum class DeviceType : std::uint8_t { cpu, cuda };

/// Where the bytes of a tensor live.
struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// "cpu" or "cuda:0".
FLASH3_EXPORT std::string name_of(Device device);

/// A view of up to six dimensions. It owns nothing and copies nothing. `strides` count elements, not bytes.
/// `Pointer` is `void*` for outputs and `const void*` for inputs.
template <class Pointer>
struct BasicTensorView {
  static constexpr int max_rank = 6;

  Pointer data = nullptr;
  DType dtype = DType::float32;
  Device device{};
  int rank = 0;
  std::array<std::int64_t, max_rank> shape{};
  std::array<std::int64_t, max_rank> strides{};

  BasicTensorView() = default;

  /// A dense row-major view.
  BasicTensorView(Pointer data_, DType dtype_, std::initializer_list<std::int64_t> shape_, Device device_ = {})
      : data(data_), dtype(dtype_), device(device_) {
    set_shape(shape_);
    std::int64_t stride = 1;
    for (int d = rank - 1; d >= 0; --d) {
      strides[static_cast<std::size_t>(d)] = stride;
      stride *= shape[static_cast<std::size_t>(d)];
    }
  }

  /// A view with given strides, in elements.
  BasicTensorView(Pointer data_, DType dtype_, std::initializer_list<std::int64_t> shape_,
                  std::initializer_list<std::int64_t> strides_, Device device_ = {})
      : data(data_), dtype(dtype_), device(device_) {
    set_shape(shape_);
    if (strides_.size() != shape_.size()) throw InvalidArgument("strides", "strides and shape differ in rank");
    std::size_t d = 0;
    for (std::int64_t stride : strides_) strides[d++] = stride;
  }

  /// A view that may be written can be read.
  template <class Other>
  requires(std::is_same_v<Pointer, const void*>&& std::is_same_v<Other, void*>)
      BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data),
        dtype(other.dtype),
        device(other.device),
        rank(other.rank),
        shape(other.shape),
        strides(other.strides) {}

  /// Number of elements.
  std::int64_t numel() const noexcept {
    std::int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= shape[static_cast<std::size_t>(d)];
    return n;
  }

 private:
  void set_shape(std::initializer_list<std::int64_t> shape_) {
    if (shape_.size() > static_cast<std::size_t>(max_rank)) throw InvalidArgument("shape", "more than 6 dimensions");
    rank = static_cast<int>(shape_.size());
    std::size_t d = 0;
    for (std::int64_t extent : shape_) shape[d++] = extent;
  }
};

using TensorView = BasicTensorView<void*>;
using ConstTensorView = BasicTensorView<const void*>;

}  // namespace flash3
