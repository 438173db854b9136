// Owns the emulator's encoding of a tensor map, and the walk over the rows of a box.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hopper/make_tensor_map.h"

namespace flash3::emulator {

struct BoxMap {
  static constexpr std::uint32_t magic_value = 0x1f3a5b7c;
  std::uint32_t magic;
  std::uint8_t rank, element_bytes, swizzle;
  hopper::ElementType type;
  const std::byte* base;
  std::int64_t sizes[5];
  std::int64_t strides[5];  // bytes
  std::uint16_t box[5];

  int box_bytes() const {
    int bytes = element_bytes;
    for (int d = 0; d < rank; ++d) bytes *= box[d];
    return bytes;
  }
};

// For each row of the box at `coordinates`: row(number, first valid element's address, leading elements outside, valid
// elements). A row outside the tensor has no valid element.
template <class Row>
void walk_box(const BoxMap& map, const int* coordinates, Row row) {
  int at[5] = {};
  for (int number = 0;; ++number) {
    bool inside = true;
    const std::byte* address = map.base;
    for (int d = 1; d < map.rank; ++d) {
      const std::int64_t i = static_cast<std::int64_t>(coordinates[d]) + at[d];
      inside = inside && i >= 0 && i < map.sizes[d];
      address += inside ? i * map.strides[d] : 0;
    }
    const std::int64_t first = coordinates[0];
    const std::int64_t begin = first < 0 ? -first : 0;
    const std::int64_t end = first + map.box[0] > map.sizes[0] ? map.sizes[0] - first : map.box[0];
    const int valid = inside && end > begin ? static_cast<int>(end - begin) : 0;
    row(number, address + (first + begin) * map.element_bytes, static_cast<int>(begin), valid);
    int d = 1;
    while (d < map.rank && ++at[d] == map.box[d]) at[d++] = 0;
    if (d >= map.rank) return;
  }
}

}  // namespace flash3::emulator
