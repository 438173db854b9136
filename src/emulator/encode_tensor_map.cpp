// Owns what a tensor map holds on the emulator.
#include <cstring>

#include "emulator/box.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

std::string encode_tensor_map(const TensorMapShape& shape, TensorMap& map) {
  static_assert(sizeof(emulator::BoxMap) <= sizeof(TensorMap));
  emulator::BoxMap box = {};
  box.magic = emulator::BoxMap::magic_value;
  box.rank = static_cast<std::uint8_t>(shape.rank);
  box.element_bytes = shape.type == ElementType::float32 ? 4 : shape.type == ElementType::uint8 ? 1 : 2;
  box.swizzle = static_cast<std::uint8_t>(shape.swizzle);
  box.type = shape.type;
  box.base = static_cast<const std::byte*>(shape.base);
  for (int d = 0; d < shape.rank; ++d) {
    box.sizes[d] = shape.sizes[d];
    box.strides[d] = shape.stride_bytes[d];
    box.box[d] = static_cast<std::uint16_t>(shape.box[d]);
  }
  std::memset(&map, 0, sizeof map);
  std::memcpy(&map, &box, sizeof box);
  return {};
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
