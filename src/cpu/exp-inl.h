// exp2 and tanh on vectors.

#if defined(FLASH3_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASH3_CPU_EXP_INL_H_
#undef FLASH3_CPU_EXP_INL_H_
#else
#define FLASH3_CPU_EXP_INL_H_
#endif

#include "cpu/gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// 2^n 2^f for an integer n, at most 200 in magnitude, and |f| <= 1/2.
//
// The polynomial is the minimax one of degree 5 with value 1 at 0, relative error 9.2e-8. On AVX-512 the rest of exp2
// runs on ports that the matrix products leave idle.
HWY_INLINE Vector exp2_of_parts(Vector n, Vector f) {
  Vector p = hn::Set(lanes_tag, 0.00132647290963f);
  p = hn::MulAdd(p, f, hn::Set(lanes_tag, 0.00967151263982f));
  p = hn::MulAdd(p, f, hn::Set(lanes_tag, 0.0555073373724f));
  p = hn::MulAdd(p, f, hn::Set(lanes_tag, 0.240222420855f));
  p = hn::MulAdd(p, f, hn::Set(lanes_tag, 0.693146977603f));
  p = hn::MulAdd(p, f, hn::Set(lanes_tag, 1.0f));
#if HWY_TARGET <= HWY_AVX3
  return hn::MulByFloorPow2(p, n);
#else
  // 2^n in two factors, so that each is a normal number.
  const hn::RebindToSigned<Float> integers;
  const auto exponent = hn::ConvertTo(integers, hn::Min(hn::Set(lanes_tag, 200.0f), n));
  const auto half = hn::ShiftRight<1>(exponent);
  const auto power = [&](auto e) HWY_ATTR {
    return hn::BitCast(lanes_tag, hn::ShiftLeft<23>(hn::Add(e, hn::Set(integers, 127))));
  };
  return hn::Mul(hn::Mul(p, power(half)), power(hn::Sub(exponent, half)));
#endif
}

// 2^x within 2 units in the last place, subnormal results included; 0 for -inf, NaN for NaN. Not for +inf.
HWY_INLINE Vector exp2(Vector x) {
  const Vector bounded = hn::Max(hn::Set(lanes_tag, -200.0f), x);  // the operand order keeps NaN
  const Vector n = hn::Round(bounded);
  return exp2_of_parts(n, hn::Sub(bounded, n));
}

#if HWY_TARGET <= HWY_AVX3
// 2^x to the same accuracy, in 8 instructions of AVX-512, which finds the fraction and the power by itself: 0 for -inf,
// NaN for NaN. The polynomial is the minimax one of degree 5 on [0, 1] with value 1 at 0, relative error 8.3e-8.
// Of several vectors, step by step: one after the other, their chains of instructions would fill the processor's
// queues.
template <int count>
HWY_INLINE void short_exp2(Vector (&x)[count]) {
  constexpr int to_fraction = 0x09;  // x - floor(x), and no exception for what is lost
  constexpr float coefficients[] = {0.00901703070849f, 0.0557999126613f, 0.240164443851f, 0.693151295185f, 1.0f};
  Vector f[count], p[count];
  for (int i = 0; i < count; ++i) f[i] = Vector{_mm512_reduce_ps(x[i].raw, to_fraction)};
  for (int i = 0; i < count; ++i) p[i] = hn::Set(lanes_tag, 0.0018671300495f);
  for (const float c : coefficients) {
    for (int i = 0; i < count; ++i) p[i] = hn::MulAdd(p[i], f[i], hn::Set(lanes_tag, c));
  }
  for (int i = 0; i < count; ++i) x[i] = hn::MulByFloorPow2(p[i], x[i]);
}
#endif

// e^x, to the same accuracy however large |x|, which exp2(x log2(e)) would not have. Not for +inf.
HWY_INLINE Vector exp(Vector x) {
  constexpr double log2_e = 1.4426950408889634;
  const Vector high = hn::Set(lanes_tag, static_cast<float>(log2_e));
  const Vector low = hn::Set(lanes_tag, static_cast<float>(log2_e - static_cast<double>(static_cast<float>(log2_e))));
  const Vector bounded = hn::Max(hn::Set(lanes_tag, -138.0f), x);
  const Vector n = hn::Round(hn::Mul(bounded, high));
  return exp2_of_parts(n, hn::MulAdd(bounded, low, hn::MulSub(bounded, high, n)));
}

// tanh(x) within a few units in the last place.
HWY_INLINE Vector tanh(Vector x) {
  // Near 0: x + x^3 R(x^2), minimax on |x| <= 0.6, relative error 2.7e-9.
  const Vector z = hn::Mul(x, x);
  Vector r = hn::Set(lanes_tag, -0.00590586771495f);
  r = hn::MulAdd(r, z, hn::Set(lanes_tag, 0.0208053839414f));
  r = hn::MulAdd(r, z, hn::Set(lanes_tag, -0.0537866833597f));
  r = hn::MulAdd(r, z, hn::Set(lanes_tag, 0.133319582399f));
  r = hn::MulAdd(r, z, hn::Set(lanes_tag, -0.333332992719f));
  const Vector near = hn::MulAdd(hn::Mul(r, z), x, x);
  // Elsewhere: 1 - 2 / (1 + e^2|x|); from |x| = 10 on the result is 1 in float.
  const Vector magnitude = hn::Abs(x);
  const Vector bounded = hn::Min(hn::Set(lanes_tag, 10.0f), magnitude);
  const Vector e = exp(hn::Add(bounded, bounded));
  const Vector one = hn::Set(lanes_tag, 1.0f);
  const Vector far = hn::CopySign(hn::Sub(one, hn::Div(hn::Set(lanes_tag, 2.0f), hn::Add(e, one))), x);
  const Vector result = hn::IfThenElse(hn::Lt(magnitude, hn::Set(lanes_tag, 0.6f)), near, far);
  return hn::IfThenElse(hn::IsNaN(x), x, result);
}

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#endif
