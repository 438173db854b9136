// Owns what any machine's tensor map must satisfy, and the maps of attention tensors.
#include "hopper/make_tensor_map.h"

#include <algorithm>

namespace flash3::hopper::inline FLASH3_MACHINE {
namespace {

int bytes_of(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return 4;
    case ElementType::uint8:
      return 1;
    case ElementType::bfloat16:
    case ElementType::float16:
      return 2;
  }
  return 0;
}

std::string in_dimension(int d, const std::string& what, std::int64_t given, const std::string& accepted) {
  return "tensor map: " + what + " of dimension " + std::to_string(d) + " is " + std::to_string(given) +
         "; accepted: " + accepted;
}

std::string check(const TensorMapShape& shape) {
  if (shape.rank < 1 || shape.rank > 5) {
    return "tensor map: rank is " + std::to_string(shape.rank) + "; accepted: 1 to 5";
  }
  if (shape.base == nullptr) return "tensor map: the data pointer is null";
  if (reinterpret_cast<std::uintptr_t>(shape.base) % 16 != 0) {
    return "tensor map: the data pointer is not a multiple of 16 bytes";
  }
  const int element = bytes_of(shape.type);
  for (int d = 0; d < shape.rank; ++d) {
    if (shape.sizes[d] < 1 || shape.sizes[d] > (std::int64_t{1} << 32)) {
      return in_dimension(d, "the size", shape.sizes[d], "1 to 2^32");
    }
    if (shape.box[d] < 1 || shape.box[d] > 256) return in_dimension(d, "the box", shape.box[d], "1 to 256");
    if (d == 0) continue;
    const std::int64_t stride = shape.stride_bytes[d];
    if (stride % 16 != 0 || stride < 0 || stride >= (std::int64_t{1} << 40)) {
      return in_dimension(d, "the stride in bytes", stride, "multiples of 16 from 0 to 2^40");
    }
  }
  const int row_bytes = shape.box[0] * element;
  if (row_bytes % 16 != 0) return in_dimension(0, "the box in bytes", row_bytes, "multiples of 16");
  if (shape.swizzle != Swizzle::none && row_bytes > static_cast<int>(shape.swizzle)) {
    return in_dimension(0, "the box in bytes", row_bytes,
                        "at most the swizzle's " + std::to_string(static_cast<int>(shape.swizzle)));
  }
  return {};
}

}  // namespace

std::string make_tensor_map(const TensorMapShape& given, TensorMap& map) {
  TensorMapShape shape = given;
  // The stride of a dimension of size 1 is never used: callers' tensors carry anything there.
  for (int d = 1; d < shape.rank && d < 5; ++d) {
    if (shape.sizes[d] == 1) shape.stride_bytes[d] = 16;
  }
  std::string error = check(shape);
  return error.empty() ? encode_tensor_map(shape, map) : error;
}

std::string make_attention_map(const AttentionTensor& tensor, int panel_columns, int rows, Swizzle swizzle,
                               TensorMap& map) {
  const std::int64_t element = bytes_of(tensor.type);
  TensorMapShape shape;
  shape.base = tensor.base;
  shape.type = tensor.type;
  shape.rank = 4;
  shape.swizzle = swizzle;
  const std::int64_t sizes[] = {tensor.head_dim, tensor.seqlen, tensor.heads, tensor.batch};
  const std::int64_t strides[] = {1, tensor.row_stride, tensor.head_stride, tensor.batch_stride};
  const int box[] = {panel_columns, rows, 1, 1};
  for (int d = 0; d < shape.rank; ++d) {
    shape.sizes[d] = sizes[d];
    shape.stride_bytes[d] = strides[d] * element;
    shape.box[d] = box[d];
  }
  return make_tensor_map(shape, map);
}

std::string make_packed_attention_map(const AttentionTensor& tensor, int group, int panel_columns, int rows,
                                      Swizzle swizzle, TensorMap& map) {
  if (group < 1 || tensor.heads % group != 0) {
    return "tensor map: group is " + std::to_string(group) + "; accepted: a divisor of the " +
           std::to_string(tensor.heads) + " query heads";
  }
  if (rows % group != 0 && group % rows != 0) {
    return "tensor map: group is " + std::to_string(group) + "; accepted: a divisor or a multiple of the tile's " +
           std::to_string(rows) + " rows";
  }
  const std::int64_t element = bytes_of(tensor.type);
  TensorMapShape shape;
  shape.base = tensor.base;
  shape.type = tensor.type;
  shape.rank = 5;
  shape.swizzle = swizzle;
  const std::int64_t sizes[] = {tensor.head_dim, group, tensor.seqlen, tensor.heads / group, tensor.batch};
  const std::int64_t strides[] = {1, tensor.head_stride, tensor.row_stride, tensor.head_stride * group,
                                  tensor.batch_stride};
  const int box[] = {panel_columns, std::min(group, rows), std::max(rows / group, 1), 1, 1};
  for (int d = 0; d < shape.rank; ++d) {
    shape.sizes[d] = sizes[d];
    shape.stride_bytes[d] = strides[d] * element;
    shape.box[d] = box[d];
  }
  return make_tensor_map(shape, map);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
