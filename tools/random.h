// Random tensors from a seed: the same numbers on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>

#include "core/half.h"
#include "io/tensor.h"

namespace flash3::tools {

// The engine is specified bit by bit; the standard's normal_distribution is not, hence our own.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  // In [0, 1).
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

  // N(0, 1), by Box and Muller.
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  std::mt19937_64 engine_;
};

// Element i of a tensor of floating-point dtype becomes x, rounded.
inline void store(const TensorView& dense, std::int64_t i, double x) {
  switch (dense.dtype) {
    case DType::float64:
      static_cast<double*>(dense.data)[i] = x;
      break;
    case DType::float16:
      static_cast<core::float16*>(dense.data)[i] = core::to_float16(x);
      break;
    case DType::bfloat16:
      static_cast<core::bfloat16*>(dense.data)[i] = core::to_bfloat16(x);
      break;
    default:
      static_cast<float*>(dense.data)[i] = static_cast<float>(x);
      break;
  }
}

inline void fill_normal(const TensorView& dense, Random& random) {
  for (std::int64_t i = 0; i < dense.numel(); ++i) store(dense, i, random.normal());
}

}  // namespace flash3::tools
