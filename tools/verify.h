// How wrong a result is: against float64, and beside what the same precision cannot avoid.
#pragma once

#include <cstdint>

#include "flash3/attention.h"
#include "io/tensor.h"

namespace flash3::tools {

struct ErrorFigures {
  double largest = 0;                     // of |actual - expected|
  double rmse = 0;                        // root of the mean square of it
  double relative = 0;                    // rmse / root of the mean square of expected
  double magnitude = 0;                   // of the largest expected element
  std::int64_t nonfinite_mismatches = 0;  // NaN or inf on one side only, or of another sign; no part of the above
};

// Elements that are equally infinite or both NaN agree. `expected` is dense.
ErrorFigures compare(const ConstTensorView& actual, const TensorView& expected);

struct Result {
  OwnedTensor out, lse;
};

// Zeroed outputs for the arguments, of `dtype`.
Result make_result(const ForwardArgs& args, DType dtype);

// The float64 reference on the same inputs: they are widened, so that not even the output is rounded.
Result compute_reference(const ForwardArgs& args);

// Attention as one writes it down, each step rounded to the dtype of query and sums kept in float32: scores, softmax
// and product one after the other. Its error is what the precision itself costs.
Result compute_naive(const ForwardArgs& args);

// A result passes if each error is at most twice that of the naive computation, plus one unit in the last place.
struct Verdict {
  ErrorFigures out, lse, naive_out, naive_lse;
  bool passed = false;
};
Verdict judge(const Result& result, const Result& naive, const Result& reference);

}  // namespace flash3::tools
