// Owns the making of tensor maps, on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "hopper/swizzle.h"
#include "hopper/tensor_map.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

enum class ElementType { bfloat16, float16, float32, uint8 };

// Dimension 0 is contiguous; the others have strides in bytes (strides[0] is not read).
struct TensorMapShape {
  const void* base = nullptr;
  ElementType type = ElementType::bfloat16;
  int rank = 0;                       // 1 to 5
  std::int64_t sizes[5] = {};         // elements; copies fill with zero outside, stores skip
  std::int64_t stride_bytes[5] = {};  // multiples of 16, below 2^40; of a dimension of size 1 any value is fine
  int box[5] = {};                    // elements, each 1 to 256
  Swizzle swizzle = Swizzle::b128;    // box[0] fits in it
};

// Writes `map` and returns an empty string, or says what is wrong with `shape` (or with the driver).
[[nodiscard]] std::string make_tensor_map(const TensorMapShape& shape, TensorMap& map);

// A tensor (batch, seqlen, heads, head_dim) with strides in elements; for variable length batch is 1 and seqlen the
// total. Coordinates of the map: {column, row, head, batch}.
struct AttentionTensor {
  const void* base = nullptr;
  ElementType type = ElementType::bfloat16;
  std::int64_t batch = 1, seqlen = 0, heads = 0, head_dim = 0;
  std::int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
};

// Boxes of {panel_columns, rows} of one head: one copy a panel of SharedTile<T, rows, columns>.
[[nodiscard]] std::string make_attention_map(const AttentionTensor& tensor, int panel_columns, int rows,
                                             Swizzle swizzle, TensorMap& map);

// GQA-packed queries: the `group` heads that share a key head are consecutive rows. A tile row is seqlen index x group
// + head within the group; one of rows and group must be a multiple of the other. Coordinates: {column, head in group,
// row, head_kv, batch}.
[[nodiscard]] std::string make_packed_attention_map(const AttentionTensor& tensor, int group, int panel_columns,
                                                    int rows, Swizzle swizzle, TensorMap& map);

// The machine's own part: encodes a checked shape.
[[nodiscard]] std::string encode_tensor_map(const TensorMapShape& shape, TensorMap& map);

}  // namespace flash3::hopper::inline FLASH3_MACHINE
