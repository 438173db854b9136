// Owns the special-function unit and number conversion.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// ex2.approx.ftz.f32 d, x;
FLASH3_DEVICE float exp2_approx(float x, Where = Where::current()) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// lg2.approx.ftz.f32 d, x;
FLASH3_DEVICE float log2_approx(float x, Where = Where::current()) {
  float d;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// rcp.approx.ftz.f32 d, x;
FLASH3_DEVICE float rcp_approx(float x, Where = Where::current()) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// tanh.approx.f32 d, x;  Error about 2^-11.
FLASH3_DEVICE float tanh_approx(float x, Where = Where::current()) {
  float d;
  asm("tanh.approx.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

// fma.rn.f32 d, a, b, c;
FLASH3_DEVICE float fused_multiply_add(float a, float b, float c, Where = Where::current()) {
  return __fmaf_rn(a, b, c);
}

// max.f32 d, a, b;  The other one if one is NaN.
FLASH3_DEVICE float maximum(float a, float b, Where = Where::current()) { return fmaxf(a, b); }
FLASH3_DEVICE float minimum(float a, float b, Where = Where::current()) { return fminf(a, b); }

// cvt.rn.bf16x2.f32 d, high, low;  (or f16x2)  Two elements, `low` at the lower address.
template <class T>
FLASH3_DEVICE unsigned pack(float low, float high, Where = Where::current()) {
  unsigned d;
  if constexpr (is_bfloat16<T>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  }
  return d;
}

// The element in the lower, or the upper, half of a packed pair.
template <class T>
FLASH3_DEVICE float unpack_low(unsigned pair) {
  if constexpr (is_bfloat16<T>) return __uint_as_float(pair << 16);
  float d;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, low;\n}" : "=f"(d) : "r"(pair));
  return d;
}
template <class T>
FLASH3_DEVICE float unpack_high(unsigned pair) {
  if constexpr (is_bfloat16<T>) return __uint_as_float(pair & 0xffff0000u);
  float d;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, high;\n}" : "=f"(d) : "r"(pair));
  return d;
}

// x, and not before y has been computed: the compiler, which orders arithmetic as it likes, does not know that `zero`
// is 0.
FLASH3_DEVICE float not_before(float x, float y, unsigned zero) {
  return __uint_as_float((__float_as_uint(y) & zero) | __float_as_uint(x));
}

FLASH3_DEVICE float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
FLASH3_DEVICE unsigned float_to_bits(float x) { return __float_as_uint(x); }

}  // namespace flash3::hopper::inline FLASH3_MACHINE
