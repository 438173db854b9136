// Random cases, their data and layouts.
#include "support/case.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace flash3::test {
namespace {

std::vector<std::int64_t> rows_shape(const Lengths& lengths, std::int64_t heads, std::int64_t dim) {
  if (lengths.varlen) return {lengths.total(), heads, dim};
  return {lengths.batch(), lengths.longest(), heads, dim};
}

std::vector<std::int64_t> lse_shape(const Case& c) {
  if (c.query.varlen) return {c.heads_q, c.query.total()};
  return {c.batch(), c.heads_q, c.query.longest()};
}

void fill(Tensor& t, Random random, Distribution distribution) {
  for (std::int64_t n = 0; n < t.numel(); ++n) {
    double x = random.normal();
    if (distribution == Distribution::outliers && random.chance(0.001)) x += 10 * random.normal();
    t.set(n, x);
  }
}

// Poisons the rows of a tensor of queries or keys that belong to no sequence, or that its sequence does not use.
template <class Element>
void poison_unused_rows(Tensor& t, const Lengths& lengths, std::int64_t heads, std::int64_t dim, Element element) {
  std::vector<bool> used(static_cast<std::size_t>(t.numel()));
  for (std::int64_t b = 0; b < lengths.batch(); ++b) {
    for (std::int64_t i = 0; i < lengths.of(b); ++i) {
      for (std::int64_t head = 0; head < heads; ++head) {
        const std::int64_t first = element(b, i, head);
        std::fill_n(used.begin() + first, dim, true);
      }
    }
  }
  for (std::int64_t n = 0; n < t.numel(); ++n) {
    if (!used[static_cast<std::size_t>(n)]) t.set_poison(n);
  }
}

Tensor lengths_tensor(const std::vector<std::int64_t>& values) {
  Tensor t(DType::int32, {static_cast<std::int64_t>(values.size())});
  for (std::size_t n = 0; n < values.size(); ++n) {
    t.set(static_cast<std::int64_t>(n), static_cast<double>(values[n]));
  }
  return t;
}

Tensor cumulative(const Lengths& lengths) {
  std::vector<std::int64_t> starts{0};
  for (std::int64_t length : lengths.room) starts.push_back(starts.back() + length);
  return lengths_tensor(starts);
}

}  // namespace

Lengths Lengths::fixed(std::int64_t batch, std::int64_t seqlen) {
  Lengths lengths;
  lengths.room.assign(static_cast<std::size_t>(batch), seqlen);
  return lengths;
}

Lengths Lengths::variable(std::vector<std::int64_t> lengths_) {
  Lengths lengths;
  lengths.room = std::move(lengths_);
  lengths.varlen = true;
  return lengths;
}

std::int64_t Lengths::first_row(std::int64_t b) const {
  if (!varlen) return room.empty() ? 0 : b * room.front();
  return std::accumulate(room.begin(), room.begin() + b, std::int64_t{0});
}

std::int64_t Lengths::total() const { return first_row(batch()) + tail; }

std::int64_t Lengths::longest() const {
  if (room.empty()) return 0;
  return varlen ? *std::max_element(room.begin(), room.end()) : room.front();
}

double Case::scale() const { return options.softmax_scale.value_or(1 / std::sqrt(static_cast<double>(head_dim))); }

bool Case::sees(std::int64_t b, std::int64_t i, std::int64_t j) const {
  const bool bottom_right = options.alignment == MaskAlignment::bottom_right;
  const std::int64_t position = bottom_right ? i + key.of(b) - query.of(b) : i;
  if (options.causal && j > position) return false;
  if (options.window_left && position - j > *options.window_left) return false;
  if (options.window_right && j - position > *options.window_right) return false;
  return true;
}

bool Case::sees_any(std::int64_t b, std::int64_t i) const {
  for (std::int64_t j = 0; j < key.of(b); ++j) {
    if (sees(b, i, j)) return true;
  }
  return false;
}

std::int64_t Case::query_element(std::int64_t b, std::int64_t i, std::int64_t head, std::int64_t dim) const {
  return ((query.first_row(b) + i) * heads_q + head) * dim;
}

std::int64_t Case::key_element(std::int64_t b, std::int64_t j, std::int64_t head, std::int64_t dim) const {
  return ((key.first_row(b) + j) * heads_kv + head) * dim;
}

std::int64_t Case::row_element(std::int64_t b, std::int64_t i, std::int64_t head) const {
  if (query.varlen) return head * query.total() + query.first_row(b) + i;
  return (b * heads_q + head) * query.longest() + i;
}

std::int64_t Case::bias_element(std::int64_t b, std::int64_t head, std::int64_t i, std::int64_t j) const {
  std::int64_t n = bias->per_sequence ? b : 0;
  n = bias->per_head ? n * heads_q + head : n;
  n = bias->per_query ? n * query.longest() + i : n;
  return n * key.longest() + j;
}

std::string Case::to_string() const {
  const auto side = [](std::string_view name, const Lengths& l) {
    std::string text = fmt::format("{} {}[{}]", name, l.varlen ? "varlen" : "fixed", fmt::join(l.room, ","));
    if (!l.used.empty()) text += fmt::format(" used [{}]", fmt::join(l.used, ","));
    if (l.tail != 0) text += fmt::format(" tail {}", l.tail);
    return text;
  };
  std::string text = fmt::format("{} heads {}/{} head_dim {}/{} {} {}", name_of(dtype), heads_q, heads_kv, head_dim,
                                 head_dim_v, side("q", query), side("kv", key));
  if (options.softmax_scale) text += fmt::format(" scale {}", *options.softmax_scale);
  if (options.causal) text += " causal";
  if (options.window_left) text += fmt::format(" left {}", *options.window_left);
  if (options.window_right) text += fmt::format(" right {}", *options.window_right);
  if (options.alignment == MaskAlignment::top_left) text += " top-left";
  if (options.softcap > 0) text += fmt::format(" softcap {}", options.softcap);
  if (sinks) text += " sinks";
  if (bias) {
    text += fmt::format(" bias({}{}{}{})", bias->per_sequence ? "b" : "", bias->per_head ? "h" : "",
                        bias->per_query ? "q" : "", bias->float32 ? " float32" : "");
  }
  if (d_lse) text += " d_lse";
  switch (distribution) {
    case Distribution::normal:
      break;
    case Distribution::peaky:
      text += " peaky";
      break;
    case Distribution::outliers:
      text += " outliers";
      break;
    case Distribution::biased_channels:
      text += " biased-channels";
      break;
  }
  text += fmt::format("{} threads {} seed {}", plain_layouts ? "" : " layouts", num_threads, seed);
  return text;
}

Case random_case(std::uint64_t seed, DType dtype, std::int64_t pairs) {
  Random random(seed);
  Case c;
  c.seed = seed;
  c.dtype = dtype;
  c.heads_kv = random.pick({1, 1, 2, 3});
  c.heads_q = c.heads_kv * random.pick({1, 1, 2, 3, 5, 8});
  const auto dim = [&] {
    return random.chance(0.6) ? random.pick({1, 8, 16, 32, 64, 96, 128, 192, 256}) : random.between(1, 256);
  };
  c.head_dim = dim();
  c.head_dim_v = random.chance(0.6) ? c.head_dim : dim();

  const std::int64_t batch = random.pick({1, 1, 2, 3, 7});
  const auto longest = static_cast<std::int64_t>(std::sqrt(static_cast<double>(pairs / (batch * c.heads_q))));
  const auto length = [&](std::int64_t most) {
    if (random.chance(0.1)) return random.between(0, 1);
    if (random.chance(0.3)) return std::min(most, random.pick({16, 32, 64, 128, 256, 512}) + random.between(-1, 1));
    return random.between(1, std::max<std::int64_t>(most, 1));
  };
  const std::int64_t skew = random.pick({1, 1, 2, 8});  // one side longer, at the same number of pairs
  const bool queries_longer = random.chance(0.5);
  const auto lengths = [&](std::int64_t most) {
    Lengths l = Lengths::fixed(batch, length(most));
    l.varlen = random.chance(0.4);
    if (l.varlen) {
      for (std::int64_t& room : l.room) room = length(most);
      l.tail = random.chance(0.3) ? random.between(1, 5) : 0;
    }
    if (random.chance(0.3)) {
      for (std::int64_t room : l.room) l.used.push_back(random.chance(0.3) ? room : random.between(0, room));
    }
    return l;
  };
  c.query = lengths(queries_longer ? longest * skew : longest / skew);
  c.key = lengths(queries_longer ? longest / skew : longest * skew);
  if (random.chance(0.3)) c.key.room = c.query.room, c.key.used = c.query.used, c.key.varlen = c.query.varlen;
  if (!c.key.varlen) c.key.tail = 0;

  c.options.causal = random.chance(0.4);
  if (random.chance(0.25)) c.options.window_left = random.between(0, std::max<std::int64_t>(c.key.longest(), 1));
  if (random.chance(0.25)) c.options.window_right = random.between(0, std::max<std::int64_t>(c.key.longest(), 1));
  if (random.chance(0.3)) c.options.alignment = MaskAlignment::top_left;
  if (random.chance(0.2)) c.options.softmax_scale = random.pick({0.0, -0.25, 0.5, 0.03125, 0.3});
  if (random.chance(0.25)) c.options.softcap = random.pick({0.5, 5.0, 30.0});
  c.sinks = random.chance(0.25);
  if (random.chance(0.3)) {
    c.bias = BiasShape{random.chance(0.5), random.chance(0.5), random.chance(0.7), random.chance(0.6)};
  }
  c.d_lse = random.chance(0.4);
  c.distribution = random.pick({Distribution::normal, Distribution::normal, Distribution::peaky, Distribution::outliers,
                                Distribution::biased_channels});
  c.plain_layouts = random.chance(0.4);
  c.num_threads = static_cast<int>(random.pick({0, 1, 2, 3}));
  return c;
}

Tensors::Tensors(const Case& c) {
  Random random = Random(c.seed).fork(1);
  const Random data = Random(c.seed).fork(2);  // apart, so that an option more leaves the other tensors' data alone
  const DType rows = c.dtype == DType::float64 ? DType::float64 : DType::float32;
  const auto make = [&](DType dtype, std::vector<std::int64_t> shape, bool input) {
    const int rank = static_cast<int>(shape.size());
    const Layout layout = c.plain_layouts ? Layout{} : random_layout(random, rank, input);
    return Tensor(dtype, std::move(shape), layout,
                  random.chance(0.75) ? GuardedBuffer::Against::end : GuardedBuffer::Against::start);
  };
  const auto query_shape = rows_shape(c.query, c.heads_q, c.head_dim);
  const auto key_shape = rows_shape(c.key, c.heads_kv, c.head_dim);
  const auto value_shape = rows_shape(c.key, c.heads_kv, c.head_dim_v);
  const auto out_shape = rows_shape(c.query, c.heads_q, c.head_dim_v);

  const int heads_axis = static_cast<int>(query_shape.size()) - 2;
  const bool same_rows = std::equal(query_shape.begin(), query_shape.end() - 2, key_shape.begin(), key_shape.end() - 2);
  const bool packs = !c.plain_layouts && same_rows && c.head_dim == c.head_dim_v && random.chance(0.5);
  if (packs) {  // one projection holds query, key and value
    auto inputs = Tensor::packed(c.dtype, {query_shape, key_shape, value_shape}, heads_axis);
    query = inputs[0], key = inputs[1], value = inputs[2];
    auto gradients = Tensor::packed(c.dtype, {query_shape, key_shape, value_shape}, heads_axis);
    d_query = gradients[0], d_key = gradients[1], d_value = gradients[2];
  } else {
    query = make(c.dtype, query_shape, true);
    key = make(c.dtype, key_shape, true);
    value = make(c.dtype, value_shape, true);
    d_query = make(c.dtype, query_shape, false);
    d_key = make(c.dtype, key_shape, false);
    d_value = make(c.dtype, value_shape, false);
  }
  out = make(c.dtype, out_shape, false);
  lse = make(rows, lse_shape(c), false);
  d_out = make(c.dtype, out_shape, true);
  if (c.d_lse) d_lse = make(rows, lse_shape(c), true);

  fill(query, data.fork(1), c.distribution);
  fill(key, data.fork(2), c.distribution);
  fill(value, data.fork(3), c.distribution);
  fill(d_out, data.fork(4), c.distribution);
  if (d_lse) fill(d_lse, data.fork(5), Distribution::normal);
  if (c.distribution == Distribution::peaky) {
    for (std::int64_t n = 0; n < query.numel(); ++n) query.set(n, 16 * query.get(n));
  }
  if (c.distribution == Distribution::biased_channels) {
    Random means = data.fork(6);
    std::vector<double> mean(static_cast<std::size_t>(c.head_dim));
    for (double& m : mean) m = 4 * means.normal();
    Tensor plain = key.to(DType::float64);  // an expanded key holds one element many times: do not add to it twice
    for (std::int64_t n = 0; n < key.numel(); ++n) {
      key.set(n, plain.get(n) + mean[static_cast<std::size_t>(n % c.head_dim)]);
    }
  }
  if (c.query.varlen) cu_seqlens_q = cumulative(c.query);
  if (c.key.varlen) cu_seqlens_k = cumulative(c.key);
  if (!c.query.used.empty()) seqused_q = lengths_tensor(c.query.used);
  if (!c.key.used.empty()) seqused_k = lengths_tensor(c.key.used);

  if (c.sinks) {
    sinks = Tensor(rows, {c.heads_q});
    fill(sinks, data.fork(7), Distribution::normal);
    d_sinks = Tensor(rows, {c.heads_q});
  }
  if (c.bias) {
    const std::vector<std::int64_t> shape{c.bias->per_sequence ? c.batch() : 1, c.bias->per_head ? c.heads_q : 1,
                                          c.bias->per_query ? c.query.longest() : 1, c.key.longest()};
    bias = make(c.bias->float32 ? rows : c.dtype, shape, true);
    d_bias = make(bias.dtype(), shape, false);
    fill(bias, data.fork(8), Distribution::normal);
  }

  // What must not be read. An expanded tensor shows one row in many places, so its rows stay as they are.
  const auto expanded = [](const Tensor& t) {
    for (int d = 0; d < t.view().rank; ++d) {
      if (t.view().strides[static_cast<std::size_t>(d)] == 0 && t.view().shape[static_cast<std::size_t>(d)] > 1) {
        return true;
      }
    }
    return false;
  };
  const auto poison_queries = [&](Tensor& t, std::int64_t dim) {
    if (expanded(t)) return;
    poison_unused_rows(t, c.query, c.heads_q, dim, [&](std::int64_t b, std::int64_t i, std::int64_t head) {
      return c.query_element(b, i, head, dim);
    });
  };
  poison_queries(query, c.head_dim);
  poison_queries(d_out, c.head_dim_v);
  if (d_lse && !expanded(d_lse)) {
    poison_unused_rows(d_lse, c.query, c.heads_q, 1,
                       [&](std::int64_t b, std::int64_t i, std::int64_t head) { return c.row_element(b, i, head); });
  }
  for (Tensor* t : {&key, &value}) {
    if (expanded(*t)) continue;
    const std::int64_t dim = t == &key ? c.head_dim : c.head_dim_v;
    poison_unused_rows(*t, c.key, c.heads_kv, dim, [&](std::int64_t b, std::int64_t j, std::int64_t head) {
      return c.key_element(b, j, head, dim);
    });
  }
  // Keys that no query sees, and biases of pairs that the mask hides.
  std::vector<bool> bias_seen(static_cast<std::size_t>(bias ? bias.numel() : 0));
  for (std::int64_t b = 0; b < c.batch(); ++b) {
    for (std::int64_t j = 0; j < c.key.of(b); ++j) {
      bool seen = false;
      for (std::int64_t i = 0; i < c.query.of(b); ++i) {
        if (!c.sees(b, i, j)) continue;
        seen = true;
        for (std::int64_t head = 0; c.bias && head < c.heads_q; ++head) {
          bias_seen[static_cast<std::size_t>(c.bias_element(b, head, i, j))] = true;
        }
      }
      for (std::int64_t head = 0; !seen && head < c.heads_kv; ++head) {
        for (std::int64_t d = 0; !expanded(key) && d < c.head_dim; ++d) {
          key.set_poison(c.key_element(b, j, head, c.head_dim) + d);
        }
        for (std::int64_t d = 0; !expanded(value) && d < c.head_dim_v; ++d) {
          value.set_poison(c.key_element(b, j, head, c.head_dim_v) + d);
        }
      }
    }
  }
  for (std::size_t n = 0; n < bias_seen.size(); ++n) {
    if (!bias_seen[n] && !expanded(bias)) bias.set_poison(static_cast<std::int64_t>(n));
  }
}

Tensors Tensors::to_float64() const {
  Tensors t;
  const auto same = [](const Tensor& from) { return from.to(DType::float64); };
  t.query = same(query), t.key = same(key), t.value = same(value), t.sinks = same(sinks), t.bias = same(bias);
  t.d_out = same(d_out), t.d_lse = same(d_lse);
  t.cu_seqlens_q = cu_seqlens_q, t.cu_seqlens_k = cu_seqlens_k, t.seqused_q = seqused_q, t.seqused_k = seqused_k;
  const auto poisoned = [](const Tensor& like) { return like ? Tensor(DType::float64, like.shape()) : Tensor(); };
  t.out = poisoned(out), t.lse = poisoned(lse);
  t.d_query = poisoned(d_query), t.d_key = poisoned(d_key), t.d_value = poisoned(d_value);
  t.d_sinks = poisoned(d_sinks), t.d_bias = poisoned(d_bias);
  return t;
}

namespace {

// What the two argument structs share.
template <class Args>
void place_inputs(Args& args, const Case& c, const Tensors& t, Stay& stay) {
  const auto optional = [&](const Tensor& tensor) -> std::optional<ConstTensorView> {
    if (!tensor) return std::nullopt;
    return stay.place(tensor.buffer(), tensor.view());
  };
  args.query = stay.place(t.query.buffer(), t.query.view());
  args.key = stay.place(t.key.buffer(), t.key.view());
  args.value = stay.place(t.value.buffer(), t.value.view());
  args.cu_seqlens_q = optional(t.cu_seqlens_q);
  args.cu_seqlens_k = optional(t.cu_seqlens_k);
  args.seqused_q = optional(t.seqused_q);
  args.seqused_k = optional(t.seqused_k);
  args.sinks = optional(t.sinks);
  args.bias = optional(t.bias);
  args.options = c.options;
}

}  // namespace

ForwardArgs forward_args(const Case& c, Tensors& t, Stay& stay) {
  ForwardArgs args;
  place_inputs(args, c, t, stay);
  args.out = stay.place(t.out.buffer(), t.out.view());
  if (t.lse) args.lse = stay.place(t.lse.buffer(), t.lse.view());
  return args;
}

BackwardArgs backward_args(const Case& c, Tensors& t, Stay& stay) {
  BackwardArgs args;
  place_inputs(args, c, t, stay);
  args.out = stay.place(t.out.buffer(), t.out.view());
  args.lse = stay.place(t.lse.buffer(), t.lse.view());
  args.d_out = stay.place(t.d_out.buffer(), t.d_out.view());
  args.d_query = stay.place(t.d_query.buffer(), t.d_query.view());
  args.d_key = stay.place(t.d_key.buffer(), t.d_key.view());
  args.d_value = stay.place(t.d_value.buffer(), t.d_value.view());
  if (t.d_lse) args.d_lse = stay.place(t.d_lse.buffer(), t.d_lse.view());
  if (t.d_sinks) args.d_sinks = stay.place(t.d_sinks.buffer(), t.d_sinks.view());
  if (t.d_bias) args.d_bias = stay.place(t.d_bias.buffer(), t.d_bias.view());
  return args;
}

}  // namespace flash3::test
