// The specification, in float64: what out, lse and every gradient are, row by row.
#include "reference/reference.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "core/half.h"

namespace flash3::reference {
namespace {

using core::BackwardProblem;
using core::ForwardProblem;
using core::Problem;
using core::Sequence;

constexpr double infinity = std::numeric_limits<double>::infinity();

double load(const void* data, DType dtype, std::int64_t offset) {
  switch (dtype) {
    case DType::float64:
      return static_cast<const double*>(data)[offset];
    case DType::float16:
      return core::to_float(static_cast<const core::float16*>(data)[offset]);
    case DType::bfloat16:
      return core::to_float(static_cast<const core::bfloat16*>(data)[offset]);
    default:  // refusal() leaves no other
      return static_cast<const float*>(data)[offset];
  }
}

void store(void* data, DType dtype, std::int64_t offset, double x) {
  switch (dtype) {
    case DType::float64:
      static_cast<double*>(data)[offset] = x;
      break;
    case DType::float16:
      static_cast<core::float16*>(data)[offset] = core::to_float16(x);
      break;
    case DType::bfloat16:
      static_cast<core::bfloat16*>(data)[offset] = core::to_bfloat16(x);
      break;
    default:
      static_cast<float*>(data)[offset] = static_cast<float>(x);
      break;
  }
}

using Vector = std::vector<double>;

struct Matrix {
  Matrix(std::int64_t rows, std::int64_t columns_)
      : columns(columns_), elements(static_cast<std::size_t>(rows * columns_)) {}
  double* row(std::int64_t i) { return elements.data() + i * columns; }
  const double* row(std::int64_t i) const { return elements.data() + i * columns; }

  std::int64_t columns;
  Vector elements;
};

// Eight partial sums, so that the compiler may compute them side by side.
double dot(const double* a, const double* b, std::int64_t n) {
  constexpr std::int64_t lanes = 8;
  double sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t l = 0; l < lanes; ++l) sums[l] += a[i + l] * b[i + l];
  }
  double sum = 0;
  for (double s : sums) sum += s;
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(double* to, double factor, const double* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

// Rows of one head of one sequence.
Matrix load_queries(const core::Operand& t, const Sequence& s, std::int64_t head, std::int64_t columns) {
  Matrix m(s.seqlen_q, columns);
  for (std::int64_t i = 0; i < s.seqlen_q; ++i) {
    for (std::int64_t d = 0; d < columns; ++d) m.row(i)[d] = load(t.data, t.dtype, s.q_offset(t, head, i) + d);
  }
  return m;
}

Matrix load_keys(const core::Operand& t, const Sequence& s, std::int64_t head, std::int64_t columns) {
  Matrix m(s.seqlen_kv, columns);
  for (std::int64_t j = 0; j < s.seqlen_kv; ++j) {
    for (std::int64_t d = 0; d < columns; ++d) m.row(j)[d] = load(t.data, t.dtype, s.kv_offset(t, head, j) + d);
  }
  return m;
}

// The scores of one query row over the keys that it sees, and what their gradients need.
struct Scores {
  core::Range keys;  // the keys that the row sees
  Vector score;      // of key keys.begin + n: scaled, capped, biased
  Vector slope;      // d score / d (query . key): the scale, times the softcap's slope
  // A row that sees no key, or only scores of -inf, is empty: out 0, lse -inf, no gradients, sink or no sink.
  bool empty = true;
};

Scores scores_of_row(const Problem& p, const Sequence& s, std::int64_t b, std::int64_t head, std::int64_t i,
                     const double* query, const Matrix& key) {
  Scores r;
  r.keys = core::keys_seen_by_any(s.band, {i, i + 1}, s.seqlen_kv);
  for (std::int64_t j = r.keys.begin; j < r.keys.end; ++j) {
    double score = p.softmax_scale * dot(query, key.row(j), p.head_dim);
    double slope = p.softmax_scale;
    if (p.softcap > 0) {
      const double t = std::tanh(score / p.softcap);
      score = p.softcap * t;
      slope *= 1 - t * t;
    }
    if (p.bias) score += load(p.bias.data, p.bias.dtype, p.bias_offset(b, head, i) + j);
    r.score.push_back(score);
    r.slope.push_back(slope);
    if (score != -infinity) r.empty = false;
  }
  return r;
}

void forward_head(const ForwardProblem& p, std::int64_t b, std::int64_t kv_head) {
  const Sequence s = p.sequence(b);
  const Matrix key = load_keys(p.key, s, kv_head, p.head_dim);
  const Matrix value = load_keys(p.value, s, kv_head, p.head_dim_v);
  for (std::int64_t head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head) {
    const Matrix query = load_queries(p.query, s, head, p.head_dim);
    for (std::int64_t i = 0; i < s.seqlen_q; ++i) {
      const Scores row = scores_of_row(p, s, b, head, i, query.row(i), key);
      Vector out(static_cast<std::size_t>(p.head_dim_v), 0.0);
      double lse = -infinity;
      if (!row.empty) {
        // fmax passes NaN over; it comes back through the exponentials.
        double max = -infinity;
        for (double score : row.score) max = std::fmax(max, score);
        const double sink = p.sinks ? load(p.sinks.data, p.sinks.dtype, head) : -infinity;
        max = std::fmax(max, sink);
        double sum = std::exp(sink - max);
        for (double score : row.score) sum += std::exp(score - max);
        for (std::size_t n = 0; n < row.score.size(); ++n) {
          const double probability = std::exp(row.score[n] - max) / sum;
          add_scaled(out.data(), probability, value.row(row.keys.begin + static_cast<std::int64_t>(n)), p.head_dim_v);
        }
        lse = max + std::log(sum);
      }
      for (std::int64_t d = 0; d < p.head_dim_v; ++d) {
        store(p.out.data, p.out.dtype, s.q_offset(p.out, head, i) + d, out[static_cast<std::size_t>(d)]);
      }
      if (p.lse) store(p.lse.data, p.lse.dtype, s.q_offset(p.lse, head, i), lse);
    }
  }
}

// The gradient of the bias, which many rows may add to: float64 for every element that the tensor has within the
// longest sequence.
class BiasGradient {
 public:
  explicit BiasGradient(const BackwardProblem& p)
      : tensor_(p.d_bias),
        batch_(tensor_.batch_stride != 0 ? p.batch : 1),
        heads_(tensor_.head_stride != 0 ? p.heads_q : 1),
        rows_(tensor_.seq_stride != 0 ? p.max_seqlen_q : 1),
        sums_(tensor_ ? batch_ * heads_ * rows_ : 0, p.max_seqlen_kv) {}

  // Of key 0; a dimension that broadcasts has one element, at index 0.
  double* row(std::int64_t b, std::int64_t head, std::int64_t i) {
    return sums_.row(((b % batch_) * heads_ + head % heads_) * rows_ + i % rows_);
  }

  void store_all() {
    for (std::int64_t b = 0; b < batch_; ++b) {
      for (std::int64_t head = 0; head < heads_; ++head) {
        for (std::int64_t i = 0; i < rows_; ++i) {
          const std::int64_t offset = b * tensor_.batch_stride + head * tensor_.head_stride + i * tensor_.seq_stride;
          for (std::int64_t j = 0; j < sums_.columns; ++j) {
            store(tensor_.data, tensor_.dtype, offset + j, row(b, head, i)[j]);
          }
        }
      }
    }
  }

 private:
  core::MutableOperand tensor_;
  std::int64_t batch_, heads_, rows_;
  Matrix sums_;
};

void backward_head(const BackwardProblem& p, std::int64_t b, std::int64_t kv_head, Matrix& d_sinks,
                   BiasGradient& d_bias) {
  const Sequence s = p.sequence(b);
  const Matrix key = load_keys(p.key, s, kv_head, p.head_dim);
  const Matrix value = load_keys(p.value, s, kv_head, p.head_dim_v);
  Matrix d_key(s.seqlen_kv, p.head_dim);
  Matrix d_value(s.seqlen_kv, p.head_dim_v);
  for (std::int64_t head = kv_head * p.group(); head < (kv_head + 1) * p.group(); ++head) {
    const Matrix query = load_queries(p.query, s, head, p.head_dim);
    const Matrix out = load_queries(p.out, s, head, p.head_dim_v);
    const Matrix d_out = load_queries(p.d_out, s, head, p.head_dim_v);
    for (std::int64_t i = 0; i < s.seqlen_q; ++i) {
      const Scores row = scores_of_row(p, s, b, head, i, query.row(i), key);
      Vector d_query(static_cast<std::size_t>(p.head_dim), 0.0);
      if (!row.empty) {
        const double lse = load(p.lse.data, p.lse.dtype, s.q_offset(p.lse, head, i));
        const double d_lse = p.d_lse ? load(p.d_lse.data, p.d_lse.dtype, s.q_offset(p.d_lse, head, i)) : 0.0;
        // out = sum P v and lse = log sum exp(score) give d_score = P * (d_out . v - d_out . out + d_lse).
        const double delta = dot(d_out.row(i), out.row(i), p.head_dim_v) - d_lse;
        for (std::size_t n = 0; n < row.score.size(); ++n) {
          const std::int64_t j = row.keys.begin + static_cast<std::int64_t>(n);
          const double probability = std::exp(row.score[n] - lse);
          const double d_probability = dot(d_out.row(i), value.row(j), p.head_dim_v);
          const double d_score = probability * (d_probability - delta);
          const double d_product = d_score * row.slope[n];
          add_scaled(d_value.row(j), probability, d_out.row(i), p.head_dim_v);
          add_scaled(d_key.row(j), d_product, query.row(i), p.head_dim);
          add_scaled(d_query.data(), d_product, key.row(j), p.head_dim);
          if (p.d_bias) d_bias.row(b, head, i)[j] += d_score;
        }
        // The sink is a key whose value is 0.
        if (p.d_sinks) {
          const double sink = load(p.sinks.data, p.sinks.dtype, head);
          *d_sinks.row(b * p.heads_q + head) -= std::exp(sink - lse) * delta;
        }
      }
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        store(p.d_query.data, p.d_query.dtype, s.q_offset(p.d_query, head, i) + d,
              d_query[static_cast<std::size_t>(d)]);
      }
    }
  }
  for (std::int64_t j = 0; j < s.seqlen_kv; ++j) {
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      store(p.d_key.data, p.d_key.dtype, s.kv_offset(p.d_key, kv_head, j) + d, d_key.row(j)[d]);
    }
    for (std::int64_t d = 0; d < p.head_dim_v; ++d) {
      store(p.d_value.data, p.d_value.dtype, s.kv_offset(p.d_value, kv_head, j) + d, d_value.row(j)[d]);
    }
  }
}

// Calls work(0 ... count - 1), each once, on num_threads threads.
void parallel_for(std::int64_t count, int num_threads, const std::function<void(std::int64_t)>& work) {
  std::atomic<std::int64_t> next{0};
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(num_threads));
  const auto take_turns = [&](std::exception_ptr& failure) {
    try {
      for (std::int64_t n = next++; n < count; n = next++) work(n);
    } catch (...) {
      failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int t = 1; t < num_threads; ++t) {
      others.emplace_back(take_turns, std::ref(failures[static_cast<std::size_t>(t)]));
    }
    take_turns(failures[0]);
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

// One unit of work is a key head of a sequence; threads do not pay for less than a million operations.
int useful_threads(const Problem& problem, double flops, int num_threads) {
  if (flops < 1e6) return 1;
  if (num_threads == 0) num_threads = static_cast<int>(std::thread::hardware_concurrency());
  const std::int64_t units = problem.batch * problem.heads_kv;
  return static_cast<int>(std::clamp<std::int64_t>(num_threads, 1, std::max<std::int64_t>(units, 1)));
}

}  // namespace

std::optional<std::string> refusal(const Problem& problem) {
  if (problem.device.type != DeviceType::cpu) {
    return fmt::format("the tensors are on {}; the reference reads CPU memory", name_of(problem.device));
  }
  if (problem.dtype == DType::float8_e4m3) return "float8_e4m3 is not among the reference's dtypes";
  return std::nullopt;
}

int threads_for(const ForwardProblem& problem, int num_threads) {
  return useful_threads(problem, problem.flops(), num_threads);
}

int threads_for(const BackwardProblem& problem, int num_threads) {
  // Heads and sequences share the elements of a bias; one thread keeps the order of its sums.
  return problem.d_bias ? 1 : useful_threads(problem, problem.flops(), num_threads);
}

void forward(const ForwardProblem& problem, int num_threads) {
  parallel_for(problem.batch * problem.heads_kv, threads_for(problem, num_threads),
               [&](std::int64_t n) { forward_head(problem, n / problem.heads_kv, n % problem.heads_kv); });
}

void backward(const BackwardProblem& problem, int num_threads) {
  Matrix d_sinks(problem.batch * problem.heads_q, 1);
  BiasGradient d_bias(problem);
  parallel_for(problem.batch * problem.heads_kv, threads_for(problem, num_threads), [&](std::int64_t n) {
    backward_head(problem, n / problem.heads_kv, n % problem.heads_kv, d_sinks, d_bias);
  });
  if (problem.d_bias) d_bias.store_all();
  if (problem.d_sinks) {
    for (std::int64_t head = 0; head < problem.heads_q; ++head) {
      double sum = 0;
      for (std::int64_t b = 0; b < problem.batch; ++b) sum += *d_sinks.row(b * problem.heads_q + head);
      store(problem.d_sinks.data, problem.d_sinks.dtype, head, sum);
    }
  }
}

}  // namespace flash3::reference
