// The judgement: an engine's result passes if it errs at most twice as much as the naive computation in the same
// precision, plus one ulp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "support/naive.h"
#include "support/tensor.h"

namespace flash3::test {

// Compares the elements n with counts[n] of `actual` with the float64 truth. Returns what is wrong, or "" if it passes:
// - NaN and infinities stand where the truth has them, and nowhere else;
// - the largest error is at most 2 times the naive computation's, plus an ulp of the dtype at the truth's largest
//   element, plus what cannot be resolved (Approximation::terms and noise);
// - the same for the root mean square, where the one ulp of the dtype is allowed to a single element.
// The naive error is the largest of the approximations given.
std::string judge(std::string_view name, const Tensor& actual, const std::vector<double>& truth,
                  const std::vector<const Approximation*>& naive, const std::vector<bool>& counts);

}  // namespace flash3::test
