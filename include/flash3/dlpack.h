/// \file
/// DLPack tensors as flash3 views and back, without a copy.
///
/// No particular dlpack.h is needed: these are templates over whichever DLTensor the caller includes (DLPack 0.5 and
/// later). Ownership stays with the caller: hand in the `dl_tensor` of a DLManagedTensor, and keep that alive for as
/// long as the view is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "flash3/error.h"
#include "flash3/tensor.h"

namespace flash3 {

namespace detail {

// The codes of DLDataTypeCode and DLDeviceType that flash3 knows; DLPack's ABI fixes their values.
inline constexpr unsigned dlpack_int = 0, dlpack_float = 2, dlpack_bfloat = 4, dlpack_float8_e4m3fn = 10;
inline constexpr int dlpack_cpu = 1, dlpack_cuda = 2, dlpack_cuda_host = 3, dlpack_cuda_managed = 13;

struct DLPackType {
  DType dtype;
  unsigned code, bits;
};
inline constexpr DLPackType dlpack_types[] = {
    {DType::float32, dlpack_float, 32},   {DType::float16, dlpack_float, 16},
    {DType::bfloat16, dlpack_bfloat, 16}, {DType::float8_e4m3, dlpack_float8_e4m3fn, 8},
    {DType::float64, dlpack_float, 64},   {DType::int32, dlpack_int, 32},
};

}  // namespace detail

/// A view of a DLPack tensor. Strides may be null (dense row-major); byte_offset is honoured. Pinned host memory counts
/// as CPU memory, managed memory as the GPU's.
/// \param name what errors call the tensor
/// \throws InvalidArgument if flash3 has no such data type, device or rank
template <class DLTensor>
TensorView view_of(const DLTensor& tensor, std::string_view name = "tensor") {
  TensorView view;
  const auto refuse = [&](const std::string& message) { throw InvalidArgument(std::string(name), message); };

  const unsigned code = tensor.dtype.code, bits = tensor.dtype.bits, lanes = tensor.dtype.lanes;
  const detail::DLPackType* found = nullptr;
  for (const detail::DLPackType& type : detail::dlpack_types) {
    if (type.code == code && type.bits == bits && lanes == 1) found = &type;
  }
  if (found == nullptr) {
    refuse("DLPack type with code " + std::to_string(code) + ", " + std::to_string(bits) + " bits and " +
           std::to_string(lanes) +
           " lanes; accepted are float32, float16, bfloat16, float8_e4m3fn, float64 and int32, with 1 lane");
  }
  view.dtype = found->dtype;

  const int device = static_cast<int>(tensor.device.device_type);
  if (device == detail::dlpack_cpu || device == detail::dlpack_cuda_host) {
    view.device = {DeviceType::cpu, 0};
  } else if (device == detail::dlpack_cuda || device == detail::dlpack_cuda_managed) {
    view.device = {DeviceType::cuda, static_cast<int>(tensor.device.device_id)};
  } else {
    refuse("DLPack device type " + std::to_string(device) + "; accepted are CPU and CUDA memory");
  }

  if (tensor.ndim < 0 || tensor.ndim > TensorView::max_rank) {
    refuse("rank is " + std::to_string(tensor.ndim) + ", accepted are 0 to " + std::to_string(TensorView::max_rank));
  }
  view.rank = static_cast<int>(tensor.ndim);
  std::int64_t dense_stride = 1;
  for (int d = view.rank - 1; d >= 0; --d) {
    const auto i = static_cast<std::size_t>(d);
    view.shape[i] = tensor.shape[d];
    view.strides[i] = tensor.strides != nullptr ? tensor.strides[d] : dense_stride;
    // Wraps around rather than overflow: whether a shape is sound is for the call that takes the view to say.
    dense_stride =
        static_cast<std::int64_t>(static_cast<std::uint64_t>(dense_stride) * static_cast<std::uint64_t>(view.shape[i]));
  }
  if (tensor.data != nullptr) view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return view;
}

/// The DLPack form of a view: dlpack_of<DLTensor>(view). Its shape and strides point into `view`, which must outlive
/// it. \throws InvalidArgument if the view's dtype is no flash3::DType
template <class DLTensor>
DLTensor dlpack_of(TensorView& view) {
  const detail::DLPackType* found = nullptr;
  for (const detail::DLPackType& type : detail::dlpack_types) {
    if (type.dtype == view.dtype) found = &type;
  }
  if (found == nullptr) {
    throw InvalidArgument("view",
                          "dtype code " + std::to_string(static_cast<int>(view.dtype)) + " is not a flash3 dtype");
  }
  DLTensor tensor{};
  tensor.data = view.data;
  tensor.ndim = view.rank;
  tensor.shape = view.shape.data();
  tensor.strides = view.strides.data();
  tensor.byte_offset = 0;
  tensor.dtype.code = static_cast<decltype(tensor.dtype.code)>(found->code);
  tensor.dtype.bits = static_cast<decltype(tensor.dtype.bits)>(found->bits);
  tensor.dtype.lanes = 1;
  using DeviceCode = decltype(tensor.device.device_type);
  tensor.device.device_type =
      static_cast<DeviceCode>(view.device.type == DeviceType::cpu ? detail::dlpack_cpu : detail::dlpack_cuda);
  tensor.device.device_id = view.device.index;
  return tensor;
}

}  // namespace flash3
