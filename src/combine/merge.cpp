// One row at a time: the weights of its parts from their log-sum-exps, then weighted sums.
#include "combine/merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/half.h"

namespace flash3::combine {
namespace {

using core::MergeBackwardProblem;
using core::MergeProblem;
using core::MergeShape;

// Element types of the parts and of out.
template <class Part, class Out>
struct Types {};

// Calls body with the Types of the problem.
template <class Body>
void with_types(const MergeShape& p, const Body& body) {
  const bool parts_in_float = p.parts_out.dtype == DType::float32;
  switch (p.dtype) {
    case DType::float64:
      return body(Types<double, double>{});
    case DType::float16:
      return parts_in_float ? body(Types<float, core::float16>{}) : body(Types<core::float16, core::float16>{});
    case DType::bfloat16:
      return parts_in_float ? body(Types<float, core::bfloat16>{}) : body(Types<core::bfloat16, core::bfloat16>{});
    default:  // the check leaves no other
      return body(Types<float, float>{});
  }
}

void put(double& to, double x) { to = x; }
void put(float& to, float x) { to = x; }
void put(core::float16& to, float x) { to = core::to_float16(x); }
void put(core::bfloat16& to, float x) { to = core::to_bfloat16(x); }

// float32 sums, but for float64 tensors.
template <class Element>
using SumOf = std::conditional_t<std::is_same_v<Element, double>, double, float>;

struct RowIndex {
  std::int64_t batch, head, row;
};

template <class Element, class Operand>
auto* element(const Operand& t, RowIndex at) {
  using Pointer = std::conditional_t<std::is_same_v<decltype(t.data), void*>, Element*, const Element*>;
  const std::int64_t offset = at.batch * t.batch_stride + at.row * t.seq_stride + at.head * t.head_stride;
  return static_cast<Pointer>(t.data) + offset;
}

template <class Element, class Operand>
auto* element(const Operand& t, std::int64_t part, RowIndex at) {
  return element<Element>(t, at) + part * t.part_stride;
}

// One row: what its parts weigh, and what they make together.
template <class Part, class Sum>
class Row {
 public:
  Row(const MergeShape& p, RowIndex at) : p_(p), at_(at) {
    // fmax passes NaN over; it comes back through the exponentials.
    double max = -infinity;
    for (std::int64_t part = 0; part < p.parts; ++part) {
      max = std::fmax(max, part_lse(part));
      empty_ = empty_ && is_empty(part);
    }
    if (empty_) return;
    double sum = 0;
    for (std::int64_t part = 0; part < p.parts; ++part) {
      if (!is_empty(part)) sum += std::exp(part_lse(part) - max);
    }
    lse_ = max + std::log(sum);
    for (std::int64_t part = 0; part < p.parts; ++part) {
      if (is_empty(part)) continue;
      const Sum w = weight(part);
      const Part* from = out_of(part);
      for (std::int64_t d = 0; d < p.head_dim; ++d) out_[static_cast<std::size_t>(d)] += w * core::to_float(from[d]);
    }
  }

  bool is_empty(std::int64_t part) const { return part_lse(part) == -infinity; }
  // Of a part that is not empty.
  Sum weight(std::int64_t part) const { return static_cast<Sum>(std::exp(part_lse(part) - lse_)); }
  const Part* out_of(std::int64_t part) const { return element<Part>(p_.parts_out, part, at_); }

  Sum lse() const { return static_cast<Sum>(lse_); }
  const Sum* out() const { return out_.data(); }

 private:
  static constexpr double infinity = std::numeric_limits<double>::infinity();

  double part_lse(std::int64_t part) const { return *element<Sum>(p_.parts_lse, part, at_); }

  const MergeShape& p_;
  RowIndex at_;
  bool empty_ = true;  // every part is
  double lse_ = -infinity;
  std::array<Sum, core::max_head_dim> out_{};
};

template <class Part, class Out>
void merge_row(const MergeProblem& p, RowIndex at) {
  using Sum = SumOf<Out>;
  const Row<Part, Sum> row(p, at);
  Out* out = element<Out>(p.out, at);
  for (std::int64_t d = 0; d < p.head_dim; ++d) put(out[d], row.out()[d]);
  if (p.lse) *element<Sum>(p.lse, at) = row.lse();
}

// With w_p = exp(lse_p - lse): out = sum w_p out_p and lse = log sum exp(lse_p) give
// d_out_p = w_p d_out and d_lse_p = w_p (d_out . (out_p - out) + d_lse).
template <class Part, class Out>
void merge_backward_row(const MergeBackwardProblem& p, RowIndex at) {
  using Sum = SumOf<Out>;
  const Row<Part, Sum> row(p, at);
  const Out* d_out = element<Out>(p.d_out, at);
  const Sum d_lse = p.d_lse ? *element<Sum>(p.d_lse, at) : Sum{0};
  for (std::int64_t part = 0; part < p.parts; ++part) {
    Part* d_part = element<Part>(p.d_parts_out, part, at);
    Sum& d_part_lse = *element<Sum>(p.d_parts_lse, part, at);
    d_part_lse = 0;
    if (row.is_empty(part)) {
      for (std::int64_t d = 0; d < p.head_dim; ++d) put(d_part[d], Sum{0});
      continue;
    }
    const Sum w = row.weight(part);
    const Part* part_out = row.out_of(part);
    Sum d_weight = d_lse;
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      const Sum gradient = core::to_float(d_out[d]);
      d_weight += gradient * (core::to_float(part_out[d]) - row.out()[d]);
      put(d_part[d], w * gradient);
    }
    d_part_lse = w * d_weight;
  }
}

// Calls rows(begin, end) for ranges of 0 ... count that are shared out among threads. Rows know nothing of each other,
// so the bits do not depend on how.
template <class Rows>
void share_out(std::int64_t count, std::int64_t elements_a_row, int num_threads, const Rows& rows) {
  constexpr std::int64_t worth_a_thread = 1 << 18;  // elements
  const std::int64_t wanted = num_threads == 0 ? std::max(1u, std::thread::hardware_concurrency()) : num_threads;
  const std::int64_t threads = std::clamp<std::int64_t>(count / (1 + worth_a_thread / elements_a_row), 1, wanted);
  const auto begin_of = [&](std::int64_t t) { return count / threads * t + std::min(t, count % threads); };
  std::vector<std::jthread> others;
  others.reserve(static_cast<std::size_t>(threads));
  std::int64_t t = 1;
  try {
    for (; t < threads; ++t) others.emplace_back([&, t] { rows(begin_of(t), begin_of(t + 1)); });
  } catch (const std::system_error&) {  // no more threads to be had: the rest is done here
    rows(begin_of(t), count);
  }
  rows(0, begin_of(1));
}

// Calls row(at) for every row, on threads.
template <class EachRow>
void for_each_row(const MergeShape& p, int num_threads, const EachRow& row) {
  share_out(p.batch * p.heads * p.seqlen, p.parts * p.head_dim, num_threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      row(RowIndex{n / (p.heads * p.seqlen), n / p.seqlen % p.heads, n % p.seqlen});
    }
  });
}

}  // namespace

std::optional<std::string> refusal(const MergeShape& problem) {
  if (problem.device.type != DeviceType::cpu) {
    return fmt::format("the tensors are on {}; merging reads CPU memory", name_of(problem.device));
  }
  return std::nullopt;
}

void merge(const MergeProblem& problem, int num_threads) {
  with_types(problem, [&]<class Part, class Out>(Types<Part, Out>) {
    for_each_row(problem, num_threads, [&](RowIndex at) { merge_row<Part, Out>(problem, at); });
  });
}

void merge_backward(const MergeBackwardProblem& problem, int num_threads) {
  with_types(problem, [&]<class Part, class Out>(Types<Part, Out>) {
    for_each_row(problem, num_threads, [&](RowIndex at) { merge_backward_row<Part, Out>(problem, at); });
  });
}

}  // namespace flash3::combine
