// How wrong a result is: against float64, and beside what the same precision cannot avoid.
#include "verify.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "core/check.h"
#include "inputs.h"
#include "random.h"

namespace flash3::tools {
namespace {

double load(const void* data, DType dtype, std::int64_t i) {
  switch (dtype) {
    case DType::float64:
      return static_cast<const double*>(data)[i];
    case DType::float16:
      return core::to_float(static_cast<const core::float16*>(data)[i]);
    case DType::bfloat16:
      return core::to_float(static_cast<const core::bfloat16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// x as the dtype holds it.
float round_to(DType dtype, float x) {
  if (dtype == DType::float16) return core::to_float(core::to_float16(x));
  if (dtype == DType::bfloat16) return core::to_float(core::to_bfloat16(x));
  return x;
}

// Calls visit(offset) for each element of a strided view, in row-major order.
template <class Visit>
void for_each_element(const ConstTensorView& view, const Visit& visit) {
  if (view.numel() == 0) return;
  std::array<std::int64_t, ConstTensorView::max_rank> index{};
  std::int64_t offset = 0;
  while (true) {
    visit(offset);
    int d = view.rank - 1;
    for (; d >= 0; --d) {
      const auto at = static_cast<std::size_t>(d);
      offset += view.strides[at];
      if (++index[at] < view.shape[at]) break;
      offset -= view.shape[at] * view.strides[at];
      index[at] = 0;
    }
    if (d < 0) return;
  }
}

OwnedTensor widen(const ConstTensorView& view) {
  OwnedTensor wide(DType::float64, std::span(view.shape.data(), static_cast<std::size_t>(view.rank)));
  auto* to = static_cast<double*>(wide.view.data);
  for_each_element(view, [&](std::int64_t offset) { *to++ = load(view.data, view.dtype, offset); });
  return wide;
}

double ulp_at(DType dtype, double magnitude) {
  const int digits = dtype == DType::float16 ? 11 : dtype == DType::bfloat16 ? 8 : dtype == DType::float32 ? 24 : 53;
  if (magnitude == 0 || !std::isfinite(magnitude)) return 0;
  return std::ldexp(1.0, std::ilogb(magnitude) + 1 - digits);
}

// Sixteen partial sums, so that the compiler may use vectors.
float dot(const float* a, const float* b, std::int64_t n) {
  constexpr std::int64_t lanes = 16;
  std::array<float, lanes> partial{};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) partial[static_cast<std::size_t>(l)] += a[i + l] * b[i + l];
  }
  float sum = 0;
  for (float p : partial) sum += p;
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// One head of one sequence, naively.
void naive_head(const core::ForwardProblem& p, std::int64_t b, std::int64_t head) {
  const DType dtype = p.dtype;
  const core::Sequence s = p.sequence(b);
  const std::int64_t kv_head = head / p.group();
  const auto widened = [&](const core::Operand& t, std::int64_t dim) {
    std::vector<float> rows(static_cast<std::size_t>(s.seqlen_kv * dim));
    for (std::int64_t j = 0; j < s.seqlen_kv; ++j) {
      for (std::int64_t d = 0; d < dim; ++d) {
        rows[static_cast<std::size_t>(j * dim + d)] =
            static_cast<float>(load(t.data, t.dtype, s.kv_offset(t, kv_head, j) + d));
      }
    }
    return rows;
  };
  const std::vector<float> keys = widened(p.key, p.head_dim), values = widened(p.value, p.head_dim_v);
  std::vector<float> query(static_cast<std::size_t>(p.head_dim)), out(static_cast<std::size_t>(p.head_dim_v));
  std::vector<float> score(static_cast<std::size_t>(s.seqlen_kv));
  const auto scale = static_cast<float>(p.softmax_scale), cap = static_cast<float>(p.softcap);

  for (std::int64_t i = 0; i < s.seqlen_q; ++i) {
    const core::Range seen = core::keys_seen_by_any(s.band, {i, i + 1}, s.seqlen_kv);
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      query[static_cast<std::size_t>(d)] =
          static_cast<float>(load(p.query.data, dtype, s.q_offset(p.query, head, i) + d));
    }
    float highest = -std::numeric_limits<float>::infinity();
    for (std::int64_t j = seen.begin; j < seen.end; ++j) {
      float x = round_to(dtype, scale * dot(query.data(), keys.data() + j * p.head_dim, p.head_dim));
      if (cap > 0) x = round_to(dtype, cap * std::tanh(x / cap));
      if (p.bias) {
        x = round_to(dtype, x + static_cast<float>(load(p.bias.data, p.bias.dtype, p.bias_offset(b, head, i) + j)));
      }
      score[static_cast<std::size_t>(j)] = x;
      highest = std::max(highest, x);
    }
    float sum = 0;
    if (p.sinks && !seen.empty()) {
      const auto sink = static_cast<float>(load(p.sinks.data, p.sinks.dtype, head));
      highest = std::max(highest, sink);
      sum = std::exp(sink - (std::isinf(highest) ? 0 : highest));
    }
    if (std::isinf(highest)) highest = 0;
    for (std::int64_t j = seen.begin; j < seen.end; ++j) {
      float& x = score[static_cast<std::size_t>(j)];
      x = std::exp(x - highest);
      sum += x;
    }
    std::fill(out.begin(), out.end(), 0.0f);
    for (std::int64_t j = seen.begin; j < seen.end; ++j) {
      const float weight = sum == 0 ? 0 : round_to(dtype, score[static_cast<std::size_t>(j)] / sum);
      const float* row = values.data() + j * p.head_dim_v;
      for (std::size_t d = 0; d < out.size(); ++d) out[d] += weight * row[d];
    }
    const TensorView to{p.out.data, dtype, {}};
    for (std::int64_t d = 0; d < p.head_dim_v; ++d) {
      store(to, s.q_offset(p.out, head, i) + d, out[static_cast<std::size_t>(d)]);
    }
    static_cast<float*>(p.lse.data)[s.q_offset(p.lse, head, i)] = highest + std::log(sum);
  }
}

}  // namespace

ErrorFigures compare(const ConstTensorView& actual, const TensorView& expected) {
  ErrorFigures figures;
  double squares = 0, expected_squares = 0;
  std::int64_t count = 0;
  std::int64_t at = 0;
  for_each_element(actual, [&](std::int64_t offset) {
    const double x = load(actual.data, actual.dtype, offset);
    const double y = load(expected.data, expected.dtype, at++);
    if (!std::isfinite(x) || !std::isfinite(y)) {
      figures.nonfinite_mismatches += !(x == y || (std::isnan(x) && std::isnan(y)));
      return;
    }
    const double error = std::abs(x - y);
    figures.largest = std::max(figures.largest, error);
    figures.magnitude = std::max(figures.magnitude, std::abs(y));
    squares += error * error;
    expected_squares += y * y;
    ++count;
  });
  if (count > 0) figures.rmse = std::sqrt(squares / static_cast<double>(count));
  if (expected_squares > 0) figures.relative = std::sqrt(squares / expected_squares);
  return figures;
}

Result make_result(const ForwardArgs& args, DType dtype) {
  return {OwnedTensor(dtype, out_shape(args)), OwnedTensor(row_dtype(dtype), lse_shape(args))};
}

Result compute_reference(const ForwardArgs& args) {
  Result result = make_result(args, DType::float64);
  const OwnedTensor query = widen(args.query), key = widen(args.key), value = widen(args.value);
  ForwardArgs wide = args;
  wide.query = query.view;
  wide.key = key.view;
  wide.value = value.view;
  wide.out = result.out.view;
  wide.lse = result.lse.view;
  OwnedTensor bias, sinks;
  if (args.bias) wide.bias = (bias = widen(*args.bias)).view;
  if (args.sinks) wide.sinks = (sinks = widen(*args.sinks)).view;
  forward(wide, {.engine = Engine::reference, .num_threads = 0});
  return result;
}

Result compute_naive(const ForwardArgs& args) {
  Result result = make_result(args, args.query.dtype);
  ForwardArgs copy = args;
  copy.out = result.out.view;
  copy.lse = result.lse.view;
  const core::ForwardProblem problem = core::check(copy);
  std::atomic<std::int64_t> next = 0;
  const auto work = [&] {
    for (std::int64_t n = next++; n < problem.batch * problem.heads_q; n = next++) {
      naive_head(problem, n / problem.heads_q, n % problem.heads_q);
    }
  };
  std::vector<std::jthread> threads;
  for (unsigned t = 1; t < std::thread::hardware_concurrency(); ++t) threads.emplace_back(work);
  work();
  threads.clear();
  return result;
}

Verdict judge(const Result& result, const Result& naive, const Result& reference) {
  Verdict verdict;
  verdict.out = compare(result.out.view, reference.out.view);
  verdict.lse = compare(result.lse.view, reference.lse.view);
  verdict.naive_out = compare(naive.out.view, reference.out.view);
  verdict.naive_lse = compare(naive.lse.view, reference.lse.view);
  const auto good = [](const ErrorFigures& error, const ErrorFigures& naive_error, DType dtype) {
    const double ulp = ulp_at(dtype, error.magnitude);
    return error.nonfinite_mismatches <= naive_error.nonfinite_mismatches &&
           error.largest <= 2 * naive_error.largest + ulp && error.rmse <= 2 * naive_error.rmse + ulp;
  };
  verdict.passed = good(verdict.out, verdict.naive_out, result.out.view.dtype) &&
                   good(verdict.lse, verdict.naive_lse, result.lse.view.dtype);
  return verdict;
}

}  // namespace flash3::tools
