// Owns the storage types of matrix elements, as kernels name them: two bytes each, no arithmetic.
#pragma once

namespace flash3::hopper {

struct bfloat16 {
  unsigned short bits;
};

struct float16 {
  unsigned short bits;
};

template <class T>
inline constexpr bool is_bfloat16 = false;
template <>
inline constexpr bool is_bfloat16<bfloat16> = true;

}  // namespace flash3::hopper
