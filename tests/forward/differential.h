// The forward kernels on a machine against float64, and against the error of naive attention in the same precision.
//
// Each case poisons what must not be read (rows past a length, columns past head_dim in padded tensors) with NaN, and
// guards what must not be written.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/half.h"
#include "flash3/flash3.h"
#include "reference/reference.h"

namespace flash3::testing {

// Where a case runs: memory that its kernels see, and the forward pass.
class Machine {
 public:
  virtual ~Machine() = default;
  virtual DeviceType device() const = 0;
  virtual void* allocate(std::size_t bytes, bool kernels_write) = 0;
  virtual void release(void* memory) = 0;
  virtual void upload(void* to, const void* from, std::size_t bytes) = 0;
  virtual void download(void* to, const void* from, std::size_t bytes) = 0;
  virtual void forward(const ForwardArgs& args) = 0;  // and waits
};

using core::Sequence;

inline float decode(DType dtype, std::uint16_t bits) {
  return dtype == DType::bfloat16 ? core::to_float(core::bfloat16{bits}) : core::to_float(core::float16{bits});
}
inline std::uint16_t encode(DType dtype, float x) {
  return dtype == DType::bfloat16 ? core::to_bfloat16(x).bits : core::to_float16(x).bits;
}
inline float rounded(DType dtype, float x) { return decode(dtype, encode(dtype, x)); }

struct Case {
  std::string name;
  DType dtype = DType::bfloat16;
  std::int64_t heads_q = 2, heads_kv = 2, head_dim = 128, head_dim_v = 128;
  std::vector<std::int64_t> lengths_q{300}, lengths_kv{300};  // one a sequence
  bool variable_q = false, variable_kv = false;               // cu_seqlens; else a fixed batch of the longest
  std::vector<std::int64_t> used_q, used_kv;                  // seqused, if not empty
  AttentionOptions options;
  bool sinks = false, lse = true;
  std::int64_t row_padding = 0;  // elements between rows that belong to nobody
  bool heads_outside = false;    // (batch, heads, seqlen, head_dim) in memory
  float query_scale = 1;         // peaky scores
  double key_ramp = 0;           // keys grow by so many powers of 2 over 64 keys, from the last to the first
  double key_spike = 0;          // a key in the middle of each sequence is so many times as large
  double nan_key_share = 0;      // share of visible value rows that hold a NaN
  int repeats = 1;               // runs that must agree bit for bit
};

// A tensor of 16-bit elements on both sides, with guards around it.
struct Tensor {
  static constexpr std::int64_t guard = 64;
  Machine& machine;
  std::int64_t batch, rows, heads, columns, row_stride, head_stride, batch_stride, elements;
  bool variable;
  DType dtype;
  std::vector<std::uint16_t> host;
  void* device = nullptr;

  Tensor(Machine& machine_, const Case& c, std::int64_t batch_, std::int64_t rows_, std::int64_t heads_,
         std::int64_t columns_, bool var, bool kernels_write = false)
      : machine(machine_), batch(batch_), rows(rows_), heads(heads_), columns(columns_), variable(var), dtype(c.dtype) {
    const std::int64_t width = (columns + 7) / 8 * 8;
    if (c.heads_outside) {
      row_stride = width + c.row_padding;
      head_stride = row_stride * rows;
      batch_stride = head_stride * heads;
    } else {
      head_stride = width;
      row_stride = width * heads + c.row_padding;
      batch_stride = row_stride * rows;
    }
    elements = batch_stride * batch;
    host.assign(static_cast<std::size_t>(elements + 2 * guard), 0x7fff);  // NaN in both types
    device = machine.allocate(host.size() * 2, kernels_write);
  }
  ~Tensor() { machine.release(device); }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  std::uint16_t& at(std::int64_t b, std::int64_t r, std::int64_t h, std::int64_t c) {
    return host[static_cast<std::size_t>(guard + b * batch_stride + r * row_stride + h * head_stride + c)];
  }
  void upload() { machine.upload(device, host.data(), host.size() * 2); }
  void download() { machine.download(host.data(), device, host.size() * 2); }
  TensorView view(bool on_machine) {
    auto* base = static_cast<std::uint16_t*>(on_machine ? device : host.data()) + guard;
    const Device where{on_machine ? machine.device() : DeviceType::cpu, 0};
    if (variable) return {base, dtype, {rows, heads, columns}, {row_stride, head_stride, 1}, where};
    return {base, dtype, {batch, rows, heads, columns}, {batch_stride, row_stride, head_stride, 1}, where};
  }
};

template <class T>
struct Array {
  Machine& machine;
  std::vector<T> host;
  T* device = nullptr;
  Array(Machine& machine_, std::vector<T> values, bool kernels_write = false)
      : machine(machine_), host(std::move(values)) {
    device = static_cast<T*>(machine.allocate(host.size() * sizeof(T), kernels_write));
    machine.upload(device, host.data(), host.size() * sizeof(T));
  }
  ~Array() { machine.release(device); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
};

// Naive attention with every intermediate matrix rounded to the dtype: the error that nobody could avoid.
inline void naive_row(const Case& c, const core::ForwardProblem& p, const Sequence& s, std::int64_t h, std::int64_t i,
                      std::vector<float>& out) {
  const auto* q = static_cast<const std::uint16_t*>(p.query.data) + s.q_offset(p.query, h, i);
  const std::int64_t hk = h / p.group();
  std::vector<float> score(static_cast<std::size_t>(s.seqlen_kv), -std::numeric_limits<float>::infinity());
  float top = -std::numeric_limits<float>::infinity();
  for (std::int64_t j = 0; j < s.seqlen_kv; ++j) {
    if (!s.band.sees(i, j)) continue;
    const auto* k = static_cast<const std::uint16_t*>(p.key.data) + s.kv_offset(p.key, hk, j);
    float sum = 0;
    for (std::int64_t d = 0; d < p.head_dim; ++d) sum += decode(c.dtype, q[d]) * decode(c.dtype, k[d]);
    float x = rounded(c.dtype, rounded(c.dtype, sum) * static_cast<float>(p.softmax_scale));
    if (p.softcap > 0) x = rounded(c.dtype, static_cast<float>(p.softcap * std::tanh(x / p.softcap)));
    score[static_cast<std::size_t>(j)] = x;
    top = std::max(top, x);
  }
  std::fill(out.begin(), out.end(), 0.f);
  if (top == -std::numeric_limits<float>::infinity()) return;
  double total = 0;
  const float sink = p.sinks ? static_cast<const float*>(p.sinks.data)[h] : -std::numeric_limits<float>::infinity();
  const float reference = std::max(top, sink);
  for (float x : score) total += std::exp(x - reference);
  total += std::exp(sink - reference);
  for (std::int64_t j = 0; j < s.seqlen_kv; ++j) {
    if (!s.band.sees(i, j)) continue;
    const float weight =
        rounded(c.dtype, static_cast<float>(std::exp(score[static_cast<std::size_t>(j)] - reference) / total));
    const auto* v = static_cast<const std::uint16_t*>(p.value.data) + s.kv_offset(p.value, hk, j);
    for (std::int64_t d = 0; d < p.head_dim_v; ++d) out[static_cast<std::size_t>(d)] += weight * decode(c.dtype, v[d]);
  }
  for (float& x : out) x = rounded(c.dtype, x);
}

struct Outcome {
  bool ok = true;
  std::string why;
  double error = 0, allowed = 0, lse_error = 0;
};

inline Outcome run(const Case& c, Machine& machine) {
  Outcome outcome;
  const auto fail = [&](std::string why) {
    outcome.ok = false;
    if (outcome.why.empty()) outcome.why = std::move(why);
  };
  const auto batch = static_cast<std::int64_t>(c.lengths_q.size());
  const auto cumulative = [](const std::vector<std::int64_t>& lengths) {
    std::vector<std::int32_t> cu{0};
    for (std::int64_t n : lengths) cu.push_back(cu.back() + static_cast<std::int32_t>(n));
    return cu;
  };
  const auto narrow = [](const std::vector<std::int64_t>& v) { return std::vector<std::int32_t>(v.begin(), v.end()); };
  Array<std::int32_t> cu_q(machine, cumulative(c.lengths_q)), cu_kv(machine, cumulative(c.lengths_kv));
  Array<std::int32_t> used_q(machine, narrow(c.used_q)), used_kv(machine, narrow(c.used_kv));
  const auto longest = [](const std::vector<std::int64_t>& v) { return *std::max_element(v.begin(), v.end()); };
  const std::int64_t rows_q = c.variable_q ? cu_q.host.back() : longest(c.lengths_q);
  const std::int64_t rows_kv = c.variable_kv ? cu_kv.host.back() : longest(c.lengths_kv);
  const std::int64_t batch_q = c.variable_q ? 1 : batch, batch_kv = c.variable_kv ? 1 : batch;

  Tensor query(machine, c, batch_q, rows_q, c.heads_q, c.head_dim, c.variable_q);
  Tensor key(machine, c, batch_kv, rows_kv, c.heads_kv, c.head_dim, c.variable_kv);
  Tensor value(machine, c, batch_kv, rows_kv, c.heads_kv, c.head_dim_v, c.variable_kv);
  Tensor out(machine, c, batch_q, rows_q, c.heads_q, c.head_dim_v, c.variable_q, true);
  Tensor expected(machine, c, batch_q, rows_q, c.heads_q, c.head_dim_v, c.variable_q);
  const std::size_t lse_size = static_cast<std::size_t>(batch_q * c.heads_q * rows_q);
  std::vector<float> sink_values(static_cast<std::size_t>(c.heads_q));
  std::mt19937 random(static_cast<unsigned>(std::hash<std::string>{}(c.name)));
  std::normal_distribution<float> normal;
  for (float& x : sink_values) x = 2 * normal(random);
  Array<float> sinks(machine, sink_values);
  Array<float> lse(machine, std::vector<float>(lse_size + 32, 12345.f), true);
  std::vector<float> expected_lse(lse_size + 32, 12345.f);

  // Used rows get numbers; everything else keeps its NaN.
  const auto fill = [&](Tensor& t, const std::vector<std::int64_t>& lengths, const std::vector<std::int64_t>& used,
                        const std::vector<std::int32_t>& cu, float scale) {
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto i = static_cast<std::size_t>(b);
      const std::int64_t n = !used.empty() ? used[i] : t.variable ? lengths[i] : t.rows;
      for (std::int64_t r = 0; r < n; ++r) {
        for (std::int64_t h = 0; h < t.heads; ++h) {
          for (std::int64_t d = 0; d < t.columns; ++d) {
            t.at(t.variable ? 0 : b, (t.variable ? cu[i] : 0) + r, h, d) = encode(c.dtype, scale * normal(random));
          }
        }
      }
    }
  };
  fill(query, c.lengths_q, c.used_q, cu_q.host, c.query_scale);
  fill(key, c.lengths_kv, c.used_kv, cu_kv.host, 1);
  fill(value, c.lengths_kv, c.used_kv, cu_kv.host, 1);

  const auto arguments = [&](bool on_machine) {
    const Device where{on_machine ? machine.device() : DeviceType::cpu, 0};
    ForwardArgs args;
    args.query = query.view(on_machine);
    args.key = key.view(on_machine);
    args.value = value.view(on_machine);
    args.out = on_machine ? out.view(true) : expected.view(false);
    if (c.lse) {
      float* data = on_machine ? lse.device : expected_lse.data();
      args.lse = c.variable_q ? TensorView(data, DType::float32, {c.heads_q, rows_q}, where)
                              : TensorView(data, DType::float32, {batch_q, c.heads_q, rows_q}, where);
    }
    const auto ints = [&](Array<std::int32_t>& a) {
      return ConstTensorView(on_machine ? a.device : a.host.data(), DType::int32,
                             {static_cast<std::int64_t>(a.host.size())}, where);
    };
    if (c.variable_q) {
      args.cu_seqlens_q = ints(cu_q);
      args.max_seqlen_q = longest(c.lengths_q);
    }
    if (c.variable_kv) {
      args.cu_seqlens_k = ints(cu_kv);
      args.max_seqlen_k = longest(c.lengths_kv);
    }
    if (!c.used_q.empty()) args.seqused_q = ints(used_q);
    if (!c.used_kv.empty()) args.seqused_k = ints(used_kv);
    if (c.sinks) {
      args.sinks = ConstTensorView(on_machine ? sinks.device : sinks.host.data(), DType::float32, {c.heads_q}, where);
    }
    args.options = c.options;
    return args;
  };

  // NaN in the values of some keys: rows that see one must get it in that column, and no others.
  const core::ForwardProblem problem = core::check(arguments(false));
  if (c.nan_key_share > 0) {
    std::bernoulli_distribution chosen(c.nan_key_share);
    for (std::int64_t b = 0; b < batch; ++b) {
      const Sequence s = problem.sequence(b);
      for (std::int64_t j = 0; j < s.seqlen_kv; ++j) {
        for (std::int64_t h = 0; h < c.heads_kv; ++h) {
          if (chosen(random)) value.at(s.kv_batch, s.kv_row + j, h, j % c.head_dim_v) = 0x7fff;
        }
      }
    }
  }

  const auto scale_key = [&](const Sequence& s, std::int64_t j, double factor) {
    for (std::int64_t h = 0; h < c.heads_kv; ++h) {
      for (std::int64_t d = 0; d < c.head_dim; ++d) {
        std::uint16_t& element = key.at(s.kv_batch, s.kv_row + j, h, d);
        element = encode(c.dtype, static_cast<float>(factor * decode(c.dtype, element)));
      }
    }
  };
  for (std::int64_t b = 0; b < batch; ++b) {
    const Sequence s = problem.sequence(b);
    for (std::int64_t j = 0; j < s.seqlen_kv && c.key_ramp > 0; ++j) {
      scale_key(s, j, std::exp2(c.key_ramp * static_cast<double>(s.seqlen_kv - 1 - j) / 64));
    }
    if (c.key_spike > 0) scale_key(s, s.seqlen_kv / 2, c.key_spike);
  }

  query.upload();
  key.upload();
  value.upload();
  out.upload();
  const ForwardArgs machine_args = arguments(true);
  machine.forward(machine_args);
  out.download();
  machine.download(lse.host.data(), lse.device, lse.host.size() * sizeof(float));
  for (int r = 1; r < c.repeats; ++r) {
    const std::vector<std::uint16_t> first = out.host;
    std::vector<std::uint16_t> again(first.size(), 0xffff);
    machine.upload(out.device, again.data(), again.size() * 2);
    machine.forward(machine_args);
    machine.download(again.data(), out.device, again.size() * 2);
    for (std::size_t i = 0; i < again.size(); ++i) {
      if (first[i] != 0x7fff && first[i] != again[i]) {
        fail(fmt::format("run {} differs at element {}", r, i));
        break;
      }
    }
  }

  reference::forward(problem);
  double error = 0, naive_error = 0, largest = 0, lse_error = 0;
  std::vector<char> written(out.host.size(), 0);
  std::vector<float> naive(static_cast<std::size_t>(c.head_dim_v));
  for (std::int64_t b = 0; b < batch; ++b) {
    const Sequence s = problem.sequence(b);
    for (std::int64_t h = 0; h < c.heads_q; ++h) {
      for (std::int64_t i = 0; i < s.seqlen_q; ++i) {
        naive_row(c, problem, s, h, i, naive);
        for (std::int64_t d = 0; d < c.head_dim_v; ++d) {
          const auto& place = out.at(s.q_batch, s.q_row + i, h, d);
          written[static_cast<std::size_t>(&place - out.host.data())] = 1;
          const double got = decode(c.dtype, place);
          const double want = decode(c.dtype, expected.at(s.q_batch, s.q_row + i, h, d));
          if (std::isnan(want) || std::isnan(got)) {
            if (std::isnan(want) != std::isnan(got)) {
              fail(fmt::format("out({}, {}, {}, {}) is {}, expected {}", b, i, h, d, got, want));
            }
            continue;
          }
          const double plain = naive[static_cast<std::size_t>(d)];
          error = std::max(error, std::abs(got - want));
          if (std::abs(got - want) > 0.5) {
            fail(fmt::format("out({}, {}, {}, {}) is {}, expected {}", b, i, h, d, got, want));
          }
          if (!std::isnan(plain)) naive_error = std::max(naive_error, std::abs(plain - want));
          largest = std::max(largest, std::abs(want));
        }
        if (c.lse) {
          const auto at = static_cast<std::size_t>((s.q_batch * c.heads_q + h) * rows_q + s.q_row + i);
          const float got = lse.host[at], want = expected_lse[at];
          if (got == want || (std::isnan(got) && std::isnan(want))) continue;
          const double difference = std::abs(static_cast<double>(got) - want);
          if (!(difference < 1e30)) fail(fmt::format("lse({}, {}, {}) is {}, expected {}", b, h, i, got, want));
          lse_error = std::max(lse_error, difference / std::max(1.0, std::abs(static_cast<double>(want))));
        }
      }
    }
  }
  for (std::size_t i = 0; i < written.size(); ++i) {
    if (!written[i] && out.host[i] != 0x7fff) {
      fail(fmt::format("element {} of out's memory was written, and is nobody's", static_cast<long>(i) - out.guard));
      break;
    }
  }
  const double ulp = std::ldexp(1.0, std::ilogb(std::max(largest, 1e-3)) - (c.dtype == DType::bfloat16 ? 7 : 10));
  // Where one key has all the weight, naive attention is exact; here its probability need not be 1, and is rounded.
  const double of_probability = c.key_ramp > 0 || c.key_spike > 0 ? ulp : 0;
  outcome.error = error;
  outcome.allowed = 2 * naive_error + ulp + of_probability;
  outcome.lse_error = lse_error;
  if (error > outcome.allowed) fail(fmt::format("error {:.3g}, allowed {:.3g}", error, outcome.allowed));
  const double score_scale = c.query_scale * std::max(1.0, c.key_spike) *
                             std::exp2(c.key_ramp * static_cast<double>(longest(c.lengths_kv)) / 64);
  if (lse_error > 2e-5 * score_scale) fail(fmt::format("lse error {:.3g}", lse_error));
  return outcome;
}

struct Shape {
  std::int64_t head_dim, head_dim_v;
};

inline std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const auto add = [&](Case c) { cases.push_back(std::move(c)); };
  for (DType dtype : {DType::bfloat16, DType::float16}) {
    const std::string type(name_of(dtype));
    for (Shape shape :
         {Shape{128, 128}, Shape{64, 64}, Shape{256, 256}, Shape{96, 96}, Shape{192, 128}, Shape{192, 192}}) {
      Case base;
      base.dtype = dtype;
      base.head_dim = shape.head_dim;
      base.head_dim_v = shape.head_dim_v;
      const std::string where = fmt::format("{} {}x{} ", type, shape.head_dim, shape.head_dim_v);
      const auto with = [&](std::string name, auto change) {
        Case c = base;
        c.name = where + name;
        change(c);
        add(c);
      };
      with("full 256", [](Case& c) { c.lengths_q = c.lengths_kv = {256}; });
      with("full 1 x 1", [](Case& c) { c.lengths_q = c.lengths_kv = {1}; });
      with("full 300", [](Case&) {});
      with("causal 512, many tiles", [](Case& c) {
        c.lengths_q = c.lengths_kv = {512};
        c.heads_q = c.heads_kv = 40;
        c.options.causal = true;
        c.repeats = 3;
      });
      with("causal 777", [](Case& c) { c.lengths_q = c.lengths_kv = {777}, c.options.causal = true; });
      with("causal 130 on 391", [](Case& c) { c.lengths_q = {130}, c.lengths_kv = {391}, c.options.causal = true; });
      with("causal 391 on 130, rows that see nothing",
           [](Case& c) { c.lengths_q = {391}, c.lengths_kv = {130}, c.options.causal = true; });
      with("causal top-left 391 on 130", [](Case& c) {
        c.lengths_q = {391}, c.lengths_kv = {130}, c.options.causal = true;
        c.options.alignment = MaskAlignment::top_left;
      });
      with("causal top-left 130 on 391, keys that nobody sees", [](Case& c) {
        c.lengths_q = {130}, c.lengths_kv = {391}, c.options.causal = true;
        c.options.alignment = MaskAlignment::top_left;
        c.used_kv = {391};
      });
      with("window 64 0 on 600",
           [](Case& c) { c.lengths_q = c.lengths_kv = {600}, c.options.window_left = 64, c.options.window_right = 0; });
      with("window 0 0", [](Case& c) { c.options.window_left = 0, c.options.window_right = 0; });
      with("window 100 170 on 450", [](Case& c) {
        c.lengths_q = c.lengths_kv = {450}, c.options.window_left = 100, c.options.window_right = 170;
      });
      with("softcap", [](Case& c) { c.options.softcap = 10, c.query_scale = 4, c.options.causal = true; });
      with("negative scale", [](Case& c) { c.options.softmax_scale = -0.1, c.options.causal = true; });
      with("scale 0", [](Case& c) { c.options.softmax_scale = 0.0, c.options.causal = true; });
      with("peaky", [](Case& c) { c.query_scale = 16, c.options.causal = true; });
      // Few rows: those that are given up take long on the emulator.
      with("rising scores", [](Case& c) { c.key_ramp = 2.5, c.lengths_q = {24}, c.heads_q = c.heads_kv = 1; });
      with("rising scores, causal", [](Case& c) {
        c.key_ramp = 2.5, c.lengths_q = {100}, c.heads_q = c.heads_kv = 1;
        c.options.causal = true;
      });
      with("rising scores, sinks, packed heads, variable length", [](Case& c) {
        c.heads_q = 4, c.heads_kv = 1, c.sinks = true;
        c.variable_q = c.variable_kv = true;
        c.lengths_q = {1, 9}, c.lengths_kv = {391, 300};
        c.key_ramp = 2.5;
      });
      with("slowly rising scores", [](Case& c) { c.key_ramp = 0.3, c.query_scale = 4; });
      with("one score dwarfs the others", [](Case& c) {
        c.lengths_q = {24}, c.heads_q = c.heads_kv = 1;
        c.key_spike = 1e4;
      });
      with("one score dwarfs the others, causal", [](Case& c) {
        c.lengths_q = {70}, c.lengths_kv = {300}, c.heads_q = c.heads_kv = 1;
        c.key_spike = c.dtype == DType::bfloat16 ? 1e30 : 1e4;
        c.options.causal = true;
      });
      with("sinks", [](Case& c) { c.sinks = true, c.options.causal = true; });
      with("sinks, rows that see nothing",
           [](Case& c) { c.sinks = true, c.options.causal = true, c.lengths_q = {391}, c.lengths_kv = {130}; });
      with("GQA 8 on 2, causal 400",
           [](Case& c) { c.heads_q = 8, c.heads_kv = 2, c.lengths_q = c.lengths_kv = {400}, c.options.causal = true; });
      with("GQA 6 on 2", [](Case& c) { c.heads_q = 6, c.heads_kv = 2; });
      with("MQA 16, 3 queries, causal, packed", [](Case& c) {
        c.heads_q = 16, c.heads_kv = 1, c.lengths_q = {3, 3}, c.lengths_kv = {500, 500}, c.options.causal = true;
        c.sinks = true;
      });
      with("variable length", [](Case& c) {
        c.variable_q = c.variable_kv = true;
        c.lengths_q = {1, 0, 127, 128, 129, 300, 0, 64};
        c.lengths_kv = {5, 3, 127, 128, 129, 211, 10, 64};
      });
      with("variable length, causal, GQA", [](Case& c) {
        c.variable_q = c.variable_kv = true, c.options.causal = true, c.heads_q = 4;
        c.lengths_q = {1, 0, 127, 128, 129, 300, 7, 64};
        c.lengths_kv = {5, 3, 127, 128, 129, 211, 0, 64};
      });
      with("variable length, many sequences", [](Case& c) {
        c.variable_q = c.variable_kv = true, c.options.causal = true, c.heads_q = c.heads_kv = 1;
        c.lengths_q.clear();
        for (std::int64_t b = 0; b < 75; ++b) c.lengths_q.push_back(b % 11 == 5 ? 150 + b : b * b % 9);
        c.lengths_kv = c.lengths_q;
      });
      with("variable length, packed decode", [](Case& c) {
        c.variable_q = c.variable_kv = true, c.options.causal = true, c.heads_q = 8, c.heads_kv = 1;
        c.lengths_q = {1, 2, 1, 5};
        c.lengths_kv = {700, 64, 333, 5};
      });
      with("seqused", [](Case& c) {
        c.lengths_q = {200, 200, 200}, c.lengths_kv = {260, 260, 260};
        c.used_q = {200, 77, 0}, c.used_kv = {100, 260, 3};
      });
      with("seqused, variable queries, window", [](Case& c) {
        c.variable_q = true, c.options.window_left = 40, c.options.window_right = 3;
        c.lengths_q = {150, 20}, c.lengths_kv = {260, 260}, c.used_kv = {151, 0};
      });
      with("no keys", [](Case& c) { c.lengths_kv = {0}, c.sinks = true; });
      with("NaN in some values, causal",
           [](Case& c) { c.options.causal = true, c.lengths_q = c.lengths_kv = {300}, c.nan_key_share = 0.01; });
      with("heads outside rows, padded rows", [](Case& c) { c.heads_outside = true, c.row_padding = 24; });
      with("padded rows, no lse", [](Case& c) { c.row_padding = 8, c.lse = false, c.options.causal = true; });
    }
    {
      Case c;
      c.dtype = dtype;
      c.heads_q = c.heads_kv = 1, c.head_dim = c.head_dim_v = 64;
      c.lengths_q = {200}, c.lengths_kv = {3100};
      c.name = type + " 64x64 long rows";
      add(c);
      c.lengths_kv = {3300}, c.options.causal = true, c.options.window_left = 3200;
      c.name = type + " 64x64 long rows, causal, window";
      add(c);
    }
    {
      const auto long_rows = [&](const char* what, auto change) {
        Case c;
        c.dtype = dtype;
        c.heads_q = c.heads_kv = 1, c.head_dim = c.head_dim_v = 128;
        c.lengths_q = {230}, c.lengths_kv = {900};
        change(c);
        c.name = type + " 128x128 long rows" + what;
        add(c);
      };
      long_rows("", [](Case&) {});
      long_rows(", causal, softcap, sinks",
                [](Case& c) { c.options.causal = true, c.options.softcap = 5, c.sinks = true; });
      long_rows(", window", [](Case& c) { c.options.window_left = 800, c.options.window_right = 60; });
      long_rows(", NaN in some values, causal", [](Case& c) { c.options.causal = true, c.nan_key_share = 0.01; });
      long_rows(", variable queries", [](Case& c) {
        c.variable_q = c.variable_kv = true, c.options.causal = true;
        c.lengths_q = {230, 7, 140}, c.lengths_kv = {900, 60, 141};
      });
    }
    for (Shape shape : {Shape{8, 8}, Shape{40, 40}, Shape{72, 72}, Shape{80, 64}, Shape{64, 128}, Shape{100, 100},
                        Shape{160, 96}, Shape{161, 77}, Shape{200, 250}, Shape{256, 8}, Shape{5, 3}}) {
      Case c;
      c.dtype = dtype;
      c.head_dim = shape.head_dim;
      c.head_dim_v = shape.head_dim_v;
      c.options.causal = true;
      c.lengths_q = {200}, c.lengths_kv = {230};
      c.name = fmt::format("{} {}x{} other head_dim", type, shape.head_dim, shape.head_dim_v);
      add(c);
      c.variable_q = true;
      c.lengths_q = {70, 130}, c.lengths_kv = {230, 230};
      c.name = fmt::format("{} {}x{} other head_dim, variable queries", type, shape.head_dim, shape.head_dim_v);
      add(c);
    }
  }
  return cases;
}

}  // namespace flash3::testing
