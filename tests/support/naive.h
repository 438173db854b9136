// The yardstick: attention computed naively in the precision that an engine works in, and what float32 cannot resolve.
//
// As a framework would without a fused kernel: scores, softmax and sums in float32; the probabilities and the gradient
// of the scores rounded to the dtype before they meet the next matrix product, out and gradients rounded at the end.
#pragma once

#include <memory>
#include <vector>

#include "support/case.h"

namespace flash3::test {

// A tensor's elements, row-major, and what no engine of this precision can be expected to resolve in each.
struct Approximation {
  std::vector<double> values;
  // The sum of the magnitudes that were added up: float32 sums leave an ulp of that.
  std::vector<double> terms;
  // The error to be expected from the rounding of out to the dtype, which the backward pass starts from. Only for the
  // gradients that may have few elements (d_sinks, d_bias), where the naive error alone is luck. Else 0.
  std::vector<double> noise;
};

// Where the probabilities are rounded to the dtype. Both are customary; which of them errs less on a handful of
// elements is luck.
enum class Rounding { normalised, unnormalised };

struct NaiveForward {
  Approximation out, lse;
};
struct NaiveBackward {
  Approximation d_query, d_key, d_value, d_sinks, d_bias;
};

// Naive attention over a case's tensors. The scores are computed once.
class Naive {
 public:
  Naive(const Case& c, const Tensors& t);
  ~Naive();
  Naive(const Naive&) = delete;
  Naive& operator=(const Naive&) = delete;

  NaiveForward forward(Rounding rounding) const;
  // Starts from a naive forward pass.
  NaiveBackward backward(const NaiveForward& forward) const;

 private:
  struct Data;
  std::unique_ptr<const Data> data_;
};

}  // namespace flash3::test
