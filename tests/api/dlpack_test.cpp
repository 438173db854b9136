// DLPack tensors as views and back: every data type and device, strides, offsets, refusals, and attention through them.
#include "flash3/dlpack.h"

#include <dlpack/dlpack.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include "flash3/attention.h"

namespace flash3 {
namespace {

struct Tensor : DLTensor {
  std::vector<std::int64_t> extents, steps;

  Tensor(void* data_, DLDataType type, std::vector<std::int64_t> shape_, std::vector<std::int64_t> strides_ = {})
      : DLTensor{}, extents(std::move(shape_)), steps(std::move(strides_)) {
    data = data_;
    device = {kDLCPU, 0};
    dtype = type;
    ndim = static_cast<int>(extents.size());
    shape = extents.data();
    strides = steps.empty() ? nullptr : steps.data();
  }
};

constexpr DLDataType float32{kDLFloat, 32, 1};

TEST(DLPack, NullStridesAreRowMajor) {
  std::array<float, 24> memory{};
  const TensorView view = view_of(Tensor(memory.data(), float32, {2, 3, 4}));
  EXPECT_EQ(view.data, memory.data());
  EXPECT_EQ(view.dtype, DType::float32);
  EXPECT_EQ(view.device, (Device{DeviceType::cpu, 0}));
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.shape, (TensorView(nullptr, DType::float32, {2, 3, 4}).shape));
  EXPECT_EQ(view.strides, (TensorView(nullptr, DType::float32, {2, 3, 4}).strides));
}

TEST(DLPack, StridesAndByteOffsetAreHonoured) {
  std::array<float, 64> memory{};
  Tensor tensor(memory.data(), float32, {2, 3}, {-7, 1});
  tensor.byte_offset = 40;
  const ConstTensorView view = view_of(tensor);
  EXPECT_EQ(view.data, memory.data() + 10);
  EXPECT_EQ(view.strides[0], -7);
  EXPECT_EQ(view.strides[1], 1);
}

TEST(DLPack, EveryTypeGoesThereAndBack) {
  const std::pair<DLDataType, DType> types[] = {
      {{kDLFloat, 32, 1}, DType::float32}, {{kDLFloat, 16, 1}, DType::float16}, {{kDLBfloat, 16, 1}, DType::bfloat16},
      {{10, 8, 1}, DType::float8_e4m3},    {{kDLFloat, 64, 1}, DType::float64}, {{kDLInt, 32, 1}, DType::int32},
  };
  for (const auto& [type, dtype] : types) {
    TensorView view = view_of(Tensor(nullptr, type, {0}));
    EXPECT_EQ(view.dtype, dtype);
    const auto back = dlpack_of<DLTensor>(view);
    EXPECT_EQ(back.dtype.code, type.code);
    EXPECT_EQ(back.dtype.bits, type.bits);
    EXPECT_EQ(back.dtype.lanes, 1);
  }
}

TEST(DLPack, Devices) {
  const auto device_of = [](DLDeviceType type, int id) {
    Tensor tensor(nullptr, float32, {0});
    tensor.device = {type, id};
    return view_of(tensor).device;
  };
  EXPECT_EQ(device_of(kDLCPU, 0), (Device{DeviceType::cpu, 0}));
  EXPECT_EQ(device_of(kDLCUDAHost, 1), (Device{DeviceType::cpu, 0}));
  EXPECT_EQ(device_of(kDLCUDA, 3), (Device{DeviceType::cuda, 3}));
  EXPECT_EQ(device_of(kDLCUDAManaged, 2), (Device{DeviceType::cuda, 2}));
}

TEST(DLPack, BackAgainKeepsEverything) {
  std::array<float, 24> memory{};
  TensorView view(memory.data(), DType::float32, {2, 3}, {12, 2}, {DeviceType::cuda, 1});
  const auto tensor = dlpack_of<DLTensor>(view);
  EXPECT_EQ(tensor.data, memory.data());
  EXPECT_EQ(tensor.device.device_type, kDLCUDA);
  EXPECT_EQ(tensor.device.device_id, 1);
  EXPECT_EQ(tensor.ndim, 2);
  EXPECT_EQ(tensor.shape[1], 3);
  EXPECT_EQ(tensor.strides[0], 12);
  EXPECT_EQ(tensor.byte_offset, 0u);
  const TensorView again = view_of(tensor);
  EXPECT_EQ(again.shape, view.shape);
  EXPECT_EQ(again.strides, view.strides);
  EXPECT_EQ(again.device, view.device);
}

void expect_refused(const DLTensor& tensor, const char* words) {
  try {
    view_of(tensor, "key");
    FAIL() << "accepted";
  } catch (const InvalidArgument& e) {
    EXPECT_EQ(e.argument(), "key");
    EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
  }
}

TEST(DLPack, RefusesWhatFlash3DoesNotHave) {
  expect_refused(Tensor(nullptr, {kDLUInt, 8, 1}, {4}), "code 1, 8 bits");
  expect_refused(Tensor(nullptr, {kDLInt, 64, 1}, {4}), "64 bits");
  expect_refused(Tensor(nullptr, {kDLFloat, 32, 4}, {4}), "4 lanes");
  expect_refused(Tensor(nullptr, float32, {1, 1, 1, 1, 1, 1, 1}), "rank is 7");
  Tensor negative(nullptr, float32, {});
  negative.ndim = -1;
  expect_refused(negative, "rank is -1");
  Tensor rocm(nullptr, float32, {4});
  rocm.device = {kDLROCM, 0};
  expect_refused(rocm, "device type 10");
  TensorView unknown;
  unknown.dtype = static_cast<DType>(99);
  EXPECT_THROW(dlpack_of<DLTensor>(unknown), InvalidArgument);
}

TEST(DLPack, AbsurdShapesReachTheArgumentCheck) {
  const std::int64_t huge = std::int64_t{1} << 62;
  const TensorView view = view_of(Tensor(nullptr, float32, {huge, huge, huge, 8}));
  EXPECT_EQ(view.strides[3], 1);
  ForwardArgs args;
  args.query = args.key = args.value = view;
  args.out = view;
  EXPECT_THROW(forward(args), InvalidArgument);
}

TEST(DLPack, AttentionReadsAndWritesTheCallersMemory) {
  std::array<float, 2 * 4> query{}, key{}, out{};
  std::array<float, 3 * 2 * 4> padded{};  // value's rows are every third
  for (std::size_t d = 0; d < 4; ++d) {
    padded[d] = 1;
    padded[12 + d] = 3;
  }
  ForwardArgs args;
  args.query = view_of(Tensor(query.data(), float32, {1, 2, 1, 4}));
  args.key = view_of(Tensor(key.data(), float32, {1, 2, 1, 4}));
  args.value = view_of(Tensor(padded.data(), float32, {1, 2, 1, 4}, {24, 12, 4, 1}));
  args.out = view_of(Tensor(out.data(), float32, {1, 2, 1, 4}));
  forward(args);
  for (float x : out) EXPECT_EQ(x, 2);  // equal scores: the mean of 1 and 3
}

}  // namespace
}  // namespace flash3
