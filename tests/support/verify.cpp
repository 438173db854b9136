// Runs the engines and collects complaints.
#include "support/verify.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "flash3/error.h"
#include "support/environment.h"

namespace flash3::test {
namespace {

std::vector<bool> mask_of(std::int64_t numel, bool value = false) {
  return std::vector<bool>(static_cast<std::size_t>(numel), value);
}

}  // namespace

std::vector<bool> used_query_elements(const Case& c, std::int64_t dim) {
  auto mask = mask_of(c.query.total() * c.heads_q * dim);
  for (std::int64_t b = 0; b < c.batch(); ++b) {
    std::fill_n(mask.begin() + c.query_element(b, 0, 0, dim), c.query.of(b) * c.heads_q * dim, true);
  }
  return mask;
}

std::vector<bool> used_key_elements(const Case& c, std::int64_t dim) {
  auto mask = mask_of(c.key.total() * c.heads_kv * dim);
  for (std::int64_t b = 0; b < c.batch(); ++b) {
    std::fill_n(mask.begin() + c.key_element(b, 0, 0, dim), c.key.of(b) * c.heads_kv * dim, true);
  }
  return mask;
}

std::vector<bool> used_rows(const Case& c) {
  auto mask = mask_of(c.query.total() * c.heads_q);
  for (std::int64_t b = 0; b < c.batch(); ++b) {
    for (std::int64_t head = 0; head < c.heads_q; ++head) {
      std::fill_n(mask.begin() + c.row_element(b, 0, head), c.query.of(b), true);
    }
  }
  return mask;
}

Expectation::Expectation(const Case& c, const Tensors& t, Passes passes)
    : case_(c), passes_(passes), truth_(t.to_float64()) {
  Stay host(nullptr);
  Case exact = c;
  exact.dtype = DType::float64;
  const Execution reference{Engine::reference, 0};
  forward(forward_args(exact, truth_, host), reference);
  if (passes == Passes::forward_and_backward) backward(backward_args(exact, truth_, host), reference);

  const Naive naive(c, t);
  for (Rounding rounding : {Rounding::normalised, Rounding::unnormalised}) {
    NaiveForward f = naive.forward(rounding);
    if (passes == Passes::forward_and_backward) naive_backward_.push_back(naive.backward(f));
    naive_forward_.push_back(std::move(f));
  }
}

struct Expectation::Output {
  std::string name;
  const Tensor* actual;
  const Tensor* truth;
  std::vector<bool> written;
  std::vector<const Approximation*> naive;
};

std::string Expectation::check_pass(const TestedEngine& engine, Tensors& t, bool backward) const {
  std::vector<Output> outputs;
  const auto add = [&](std::string name, const Tensor& actual, const Tensor& truth, std::vector<bool> written,
                       auto naive_of) {
    if (!actual) return;
    Output output{std::move(name), &actual, &truth, std::move(written), {}};
    for (std::size_t n = 0; n < naive_forward_.size(); ++n) output.naive.push_back(naive_of(n));
    outputs.push_back(std::move(output));
  };
  if (!backward) {
    add("out", t.out, truth_.out, used_query_elements(case_, case_.head_dim_v),
        [&](std::size_t n) { return &naive_forward_[n].out; });
    add("lse", t.lse, truth_.lse, used_rows(case_), [&](std::size_t n) { return &naive_forward_[n].lse; });
  } else {
    add("d_query", t.d_query, truth_.d_query, used_query_elements(case_, case_.head_dim),
        [&](std::size_t n) { return &naive_backward_[n].d_query; });
    add("d_key", t.d_key, truth_.d_key, used_key_elements(case_, case_.head_dim),
        [&](std::size_t n) { return &naive_backward_[n].d_key; });
    add("d_value", t.d_value, truth_.d_value, used_key_elements(case_, case_.head_dim_v),
        [&](std::size_t n) { return &naive_backward_[n].d_value; });
    add("d_sinks", t.d_sinks, truth_.d_sinks, mask_of(t.d_sinks ? t.d_sinks.numel() : 0, true),
        [&](std::size_t n) { return &naive_backward_[n].d_sinks; });
    add("d_bias", t.d_bias, truth_.d_bias, mask_of(t.d_bias ? t.d_bias.numel() : 0, true),
        [&](std::size_t n) { return &naive_backward_[n].d_bias; });
  }

  // Every buffer as it was; tensors may share one.
  const std::vector<std::pair<std::string, const Tensor*>> all{{"query", &t.query},
                                                               {"key", &t.key},
                                                               {"value", &t.value},
                                                               {"out", &t.out},
                                                               {"lse", &t.lse},
                                                               {"cu_seqlens_q", &t.cu_seqlens_q},
                                                               {"cu_seqlens_k", &t.cu_seqlens_k},
                                                               {"seqused_q", &t.seqused_q},
                                                               {"seqused_k", &t.seqused_k},
                                                               {"sinks", &t.sinks},
                                                               {"bias", &t.bias},
                                                               {"d_out", &t.d_out},
                                                               {"d_lse", &t.d_lse},
                                                               {"d_query", &t.d_query},
                                                               {"d_key", &t.d_key},
                                                               {"d_value", &t.d_value},
                                                               {"d_sinks", &t.d_sinks},
                                                               {"d_bias", &t.d_bias}};
  std::vector<std::vector<std::byte>> before;
  for (const auto& [name, tensor] : all) before.push_back(*tensor ? tensor->image() : std::vector<std::byte>());

  {
    const InUse in_use(engine);
    Stay stay(engine.memory);
    const Execution execution{engine.engine, case_.num_threads};
    if (backward) {
      flash3::backward(backward_args(case_, t, stay), execution);
    } else {
      flash3::forward(forward_args(case_, t, stay), execution);
    }
    stay.fetch();
  }

  for (std::size_t n = 0; n < all.size(); ++n) {
    const auto& [name, tensor] = all[n];
    if (!*tensor) continue;
    std::vector<std::byte> now = tensor->image();
    for (const Output& output : outputs) {
      if (&output.actual->buffer() == &tensor->buffer()) output.actual->excuse(now, before[n], output.written);
    }
    if (now != before[n]) {
      const auto at = std::mismatch(now.begin(), now.end(), before[n].begin()).first - now.begin();
      const auto start = static_cast<const std::byte*>(tensor->view().data) - tensor->buffer().whole().data();
      return fmt::format("{}: byte {} (from its first element) was written, and must not be", name, at - start);
    }
  }
  for (const Output& output : outputs) {
    for (std::size_t n = 0; n < output.written.size(); ++n) {
      if (output.written[n] && output.actual->is_poison(static_cast<std::int64_t>(n))) {
        return fmt::format("{}: element {} was not written", output.name, n);
      }
    }
  }
  for (const Output& output : outputs) {
    const std::vector<double> truth = output.truth->values();
    // float64 is judged by the truth's own resolution: only the sizes of the naive terms matter there.
    std::vector<Approximation> exact;
    std::vector<const Approximation*> naive = output.naive;
    if (output.actual->dtype() == DType::float64) {
      exact.push_back({truth, output.naive.front()->terms, std::vector<double>(truth.size())});
      naive = {&exact.front()};
    }
    std::string complaint = judge(output.name, *output.actual, truth, naive, output.written);
    if (!complaint.empty()) return complaint;
  }
  return "";
}

std::string Expectation::check(const TestedEngine& engine, Tensors& t) const {
  std::string complaint = check_pass(engine, t, false);
  if (complaint.empty() && passes_ == Passes::forward_and_backward) complaint = check_pass(engine, t, true);
  return complaint;
}

namespace {

bool verify_on(const std::vector<TestedEngine>& engines, const Case& c, Passes passes, const std::string& reproduction,
               const Edit& edit) {
  const std::string text = fmt::format("{}\n  {}", c.to_string(), reproduction);
  const Reproduction while_running(text);
  std::optional<Expectation> expectation;
  bool well = true;
  const auto complain = [&](const TestedEngine& engine, std::string_view complaint) {
    ADD_FAILURE() << name_of(engine.engine) << (engine.tiles ? "" : " without its tile unit") << ": " << complaint
                  << "\n  " << text;
    well = false;
  };
  for (const TestedEngine& engine : engines) {
    if (c.dtype == DType::float64 && engine.engine != Engine::reference) continue;
    if (!engine.tiles && c.dtype != DType::bfloat16) continue;
    Tensors t(c);  // anew for each engine: outputs are poison again
    if (edit) edit(t);
    if (!expectation) expectation.emplace(c, t, passes);
    try {
      const std::string complaint = expectation->check(engine, t);
      if (!complaint.empty()) complain(engine, complaint);
    } catch (const Unsupported& refusal) {
      if (!engine.partial) complain(engine, refusal.what());
    } catch (const std::exception& error) {
      complain(engine, fmt::format("threw {}", error.what()));
    }
  }
  return well;
}

}  // namespace

bool verify(const Case& c, Passes passes, const std::string& reproduction, const Edit& edit) {
  return verify_on(engines_present(), c, passes, reproduction, edit);
}

std::optional<Tensors> run(const TestedEngine& engine, const Case& c, Passes passes, const Edit& edit) {
  const Reproduction while_running(c.to_string());
  Tensors t(c);
  if (edit) edit(t);
  const InUse in_use(engine);
  const Execution execution{engine.engine, c.num_threads};
  try {
    Stay stay(engine.memory);
    forward(forward_args(c, t, stay), execution);
    stay.fetch();
    if (passes == Passes::forward_and_backward) {
      Stay second(engine.memory);
      backward(backward_args(c, t, second), execution);
      second.fetch();
    }
  } catch (const Unsupported&) {
    if (!engine.partial) throw;
    return std::nullopt;
  }
  return t;
}

std::string different_bits(const Tensors& a, const Tensors& b) {
  std::string names;
  const auto compare = [&](std::string_view name, const Tensor& x, const Tensor& y) {
    if (x && y && !x.same_bits(y)) names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  };
  compare("out", a.out, b.out);
  compare("lse", a.lse, b.lse);
  compare("d_query", a.d_query, b.d_query);
  compare("d_key", a.d_key, b.d_key);
  compare("d_value", a.d_value, b.d_value);
  compare("d_sinks", a.d_sinks, b.d_sinks);
  compare("d_bias", a.d_bias, b.d_bias);
  return names;
}

bool verify_random(std::int64_t n, const Case& c, Passes passes) {
  std::vector<TestedEngine> engines;
  for (const TestedEngine& engine : engines_present()) {
    // Spread evenly: the nth case is taken where the share of the cases so far passes a whole number.
    const auto taken = [&](std::int64_t m) { return static_cast<std::int64_t>(static_cast<double>(m) * engine.share); };
    if (n == 0 || taken(n + 1) > taken(n)) engines.push_back(engine);
  }
  return engines.empty() || verify_on(engines, c, passes, "again: " + command_for(c.seed), {});
}

}  // namespace flash3::test
