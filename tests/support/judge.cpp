// Errors, and the sentence that says where they are too large.
#include "support/judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace flash3::test {
namespace {

struct Error {
  double largest = 0;
  double squares = 0;
  std::int64_t at = -1;

  void add(double error, std::int64_t n) {
    if (std::abs(error) > largest) largest = std::abs(error), at = n;
    squares += error * error;
  }
};

}  // namespace

std::string judge(std::string_view name, const Tensor& actual, const std::vector<double>& truth,
                  const std::vector<const Approximation*>& naive, const std::vector<bool>& counts) {
  constexpr double float32_ulp = 0x1p-23;
  const double resolution = actual.dtype() == DType::float64 ? 0x1p-48 : float32_ulp;
  Error error;
  double scale = 0, unresolved = 0, squared_unresolved = 0;
  std::vector<Error> naive_errors(naive.size());
  std::int64_t count = 0;
  for (std::size_t n = 0; n < truth.size(); ++n) {
    if (!counts[n]) continue;
    const double a = actual.get(static_cast<std::int64_t>(n));
    // What the dtype cannot hold is infinite in it.
    const double wanted = std::isfinite(truth[n]) && std::isfinite(rounded(truth[n], actual.dtype()))
                              ? truth[n]
                              : rounded(truth[n], actual.dtype());
    if (!std::isfinite(wanted) || !std::isfinite(a)) {
      // An infinity may be inf * 0 = NaN where a factor underflows in the engine's precision, as it does in the naive
      // one.
      const bool naive_is_nan =
          std::any_of(naive.begin(), naive.end(), [&](const Approximation* x) { return std::isnan(x->values[n]); });
      const bool excused = std::isinf(wanted) && std::isnan(a) && naive_is_nan;
      if (!excused && (std::isnan(wanted) ? !std::isnan(a) : a != wanted)) {
        return fmt::format("{}: element {} is {}, the reference has {}", name, n, a, wanted);
      }
      continue;
    }
    ++count;
    error.add(a - wanted, static_cast<std::int64_t>(n));
    scale = std::max(scale, std::abs(wanted));
    double element_unresolved = 0;
    for (std::size_t m = 0; m < naive.size(); ++m) {
      const double x = naive[m]->values[n];
      if (std::isfinite(x)) naive_errors[m].add(x - wanted, static_cast<std::int64_t>(n));
      const double u = resolution * naive[m]->terms[n] + naive[m]->noise[n];
      if (std::isfinite(u)) element_unresolved = std::max(element_unresolved, u);
    }
    unresolved = std::max(unresolved, element_unresolved);
    squared_unresolved += element_unresolved * element_unresolved;
  }
  if (count == 0) return "";

  const double elements = static_cast<double>(count);
  double naive_largest = 0, naive_rms = 0;
  for (const Error& e : naive_errors) {
    naive_largest = std::max(naive_largest, e.largest);
    naive_rms = std::max(naive_rms, std::sqrt(e.squares / elements));
  }
  const double ulp = ulp_of(actual.dtype()) * scale;
  const double most = 2 * naive_largest + ulp + unresolved;
  const double rms = std::sqrt(error.squares / elements);
  const double most_rms = 2 * naive_rms + ulp / std::sqrt(elements) + std::sqrt(squared_unresolved / elements);
  if (error.largest > most) {
    const auto at = static_cast<std::size_t>(error.at);
    return fmt::format("{}: element {} is {}, the reference has {}: error {:.3g}, allowed {:.3g} (naive errs {:.3g})",
                       name, at, actual.get(error.at), truth[at], error.largest, most, naive_largest);
  }
  if (rms > most_rms) {
    return fmt::format("{}: root mean square error {:.3g}, allowed {:.3g} (naive errs {:.3g}); scale {:.3g}", name, rms,
                       most_rms, naive_rms, scale);
  }
  return "";
}

}  // namespace flash3::test
