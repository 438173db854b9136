// Owns the special-function unit and number conversion on the emulator.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/half.h"
#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// .ftz: subnormal numbers count as zero, of the same sign.
inline float flushed(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }

inline float exp2_approx(float x, Where = Where::current()) { return flushed(std::exp2(flushed(x))); }
inline float log2_approx(float x, Where = Where::current()) { return std::log2(flushed(x)); }
inline float rcp_approx(float x, Where = Where::current()) { return flushed(1.0f / flushed(x)); }
inline float tanh_approx(float x, Where = Where::current()) { return std::tanh(x); }
inline float fused_multiply_add(float a, float b, float c, Where = Where::current()) { return std::fma(a, b, c); }
inline float maximum(float a, float b, Where = Where::current()) { return std::fmax(a, b); }
inline float minimum(float a, float b, Where = Where::current()) { return std::fmin(a, b); }

template <class T>
unsigned pack(float low, float high, Where = Where::current()) {
  if constexpr (is_bfloat16<T>) {
    return core::to_bfloat16(low).bits | static_cast<unsigned>(core::to_bfloat16(high).bits) << 16;
  } else {
    return core::to_float16(low).bits | static_cast<unsigned>(core::to_float16(high).bits) << 16;
  }
}

template <class T>
float unpack_low(unsigned pair) {
  const auto bits = static_cast<std::uint16_t>(pair);
  if constexpr (is_bfloat16<T>) return core::to_float(core::bfloat16{bits});
  return core::to_float(core::float16{bits});
}
template <class T>
float unpack_high(unsigned pair) {
  return unpack_low<T>(pair >> 16);
}

// Here nothing is reordered.
inline float not_before(float x, float, unsigned) { return x; }

inline float bits_to_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned float_to_bits(float x) { return std::bit_cast<unsigned>(x); }

}  // namespace flash3::hopper::inline FLASH3_MACHINE
