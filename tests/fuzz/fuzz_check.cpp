// Fuzzes the border: arguments that start sound and are then spoilt, field by field, are refused by name or become a
// problem that an engine may trust.
//
// The first bytes choose a sound problem; each group after them overwrites one field of one tensor, or an option. No
// tensor but the lengths has memory behind it: looking at one is a crash.
#include <array>
#include <cmath>
#include <optional>
#include <string>

#include "core/check.h"
#include "fuzz.h"

namespace {

using namespace flash3;
using core::Problem;

// Every tensor of a forward or backward pass.
enum Index : int {
  query,
  key,
  value,
  out,
  lse,
  d_out,
  d_lse,
  d_query,
  d_key,
  d_value,
  sinks,
  d_sinks,
  bias,
  d_bias,
  cu_seqlens_q,
  cu_seqlens_k,
  seqused_q,
  seqused_k,
  count
};

constexpr int lengths_capacity = 32;

struct Arguments {
  std::array<TensorView, Index::count> tensor;
  std::array<bool, Index::count> present{};
  std::array<std::array<std::int32_t, lengths_capacity>, 4> lengths{};
  AttentionOptions options;
  std::uintptr_t next_address = std::uintptr_t{1} << 40;

  void add(Index which, DType dtype, std::initializer_list<std::int64_t> shape) {
    tensor[which] = TensorView(reinterpret_cast<void*>(next_address), dtype, shape);
    next_address += static_cast<std::uintptr_t>(tensor[which].numel()) * size_of(dtype);
    next_address = (next_address + 7) / 8 * 8;
    present[which] = true;
  }

  std::optional<ConstTensorView> input(Index which) const {
    return present[which] ? std::optional<ConstTensorView>(tensor[which]) : std::nullopt;
  }
  std::optional<TensorView> output(Index which) const {
    return present[which] ? std::optional(tensor[which]) : std::nullopt;
  }

  template <class Args>
  void common(Args& args) const {
    args.query = tensor[query];
    args.key = tensor[key];
    args.value = tensor[value];
    args.sinks = input(sinks);
    args.bias = input(bias);
    args.cu_seqlens_q = input(cu_seqlens_q);
    args.cu_seqlens_k = input(cu_seqlens_k);
    args.seqused_q = input(seqused_q);
    args.seqused_k = input(seqused_k);
    args.options = options;
  }

  ForwardArgs forward() const {
    ForwardArgs args;
    common(args);
    args.out = tensor[out];
    args.lse = output(lse);
    return args;
  }

  BackwardArgs backward() const {
    BackwardArgs args;
    common(args);
    args.out = tensor[out];
    args.lse = tensor[lse];
    args.d_out = tensor[d_out];
    args.d_lse = input(d_lse);
    args.d_query = tensor[d_query];
    args.d_key = tensor[d_key];
    args.d_value = tensor[d_value];
    args.d_sinks = output(d_sinks);
    args.d_bias = output(d_bias);
    return args;
  }
};

void make_sound(Bytes& bytes, Arguments& a) {
  constexpr DType dtypes[]{DType::float32, DType::float16, DType::bfloat16, DType::float64, DType::float8_e4m3};
  const DType dtype = dtypes[bytes.below(5)];
  const DType rows = dtype == DType::float64 ? DType::float64 : DType::float32;
  const std::uint8_t features = bytes.byte();
  const std::int64_t batch = bytes.below(4), q = bytes.below(8), kv = bytes.below(8), heads_kv = 1 + bytes.below(3);
  const std::int64_t heads_q = heads_kv * (1 + bytes.below(3)), dim = 1 + bytes.byte(), dim_v = 1 + bytes.byte();
  if (features & 1) {
    a.add(query, dtype, {batch * q, heads_q, dim});
    a.add(key, dtype, {batch * kv, heads_kv, dim});
    a.add(value, dtype, {batch * kv, heads_kv, dim_v});
    for (Index i : {out, d_out}) a.add(i, dtype, {batch * q, heads_q, dim_v});
    for (Index i : {lse, d_lse}) a.add(i, rows, {heads_q, batch * q});
  } else {
    a.add(query, dtype, {batch, q, heads_q, dim});
    a.add(key, dtype, {batch, kv, heads_kv, dim});
    a.add(value, dtype, {batch, kv, heads_kv, dim_v});
    for (Index i : {out, d_out}) a.add(i, dtype, {batch, q, heads_q, dim_v});
    for (Index i : {lse, d_lse}) a.add(i, rows, {batch, heads_q, q});
  }
  for (const auto& [gradient, of] : {std::pair{d_query, query}, {d_key, key}, {d_value, value}}) {
    a.add(gradient, dtype, {});
    const void* place = a.tensor[gradient].data;
    a.tensor[gradient] = a.tensor[of];
    a.tensor[gradient].data = const_cast<void*>(place);
    a.next_address += static_cast<std::uintptr_t>(a.tensor[of].numel()) * size_of(dtype);
  }
  if (features & 2) {
    for (Index i : {sinks, d_sinks}) a.add(i, rows, {heads_q});
  }
  if (features & 4) {
    for (Index i : {bias, d_bias}) a.add(i, features & 8 ? dtype : rows, {features & 16 ? batch : 1, heads_q, 1, kv});
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto at = static_cast<std::size_t>(b);
    a.lengths[0][at + 1] = static_cast<std::int32_t>((b + 1) * q);
    a.lengths[1][at + 1] = static_cast<std::int32_t>((b + 1) * kv);
    a.lengths[2][at] = static_cast<std::int32_t>(bytes.below(static_cast<int>(q) + 1));
    a.lengths[3][at] = static_cast<std::int32_t>(bytes.below(static_cast<int>(kv) + 1));
  }
  const std::array<std::pair<Index, bool>, 4> lengths{std::pair{cu_seqlens_q, (features & 1) != 0},
                                                      {cu_seqlens_k, (features & 1) != 0},
                                                      {seqused_q, (features & 32) != 0},
                                                      {seqused_k, (features & 64) != 0}};
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto [which, wanted] = lengths[i];
    a.tensor[which] = TensorView(a.lengths[i].data(), DType::int32, {i < 2 ? batch + 1 : batch});
    a.present[which] = wanted;
  }
  a.options.causal = (features & 128) != 0;
}

void spoil(Bytes& bytes, Arguments& a) {
  const int which = bytes.below(Index::count + 2);
  if (which == Index::count) {
    const double x = bytes.real();
    switch (bytes.below(6)) {
      case 0:
        a.options.softmax_scale = x;
        break;
      case 1:
        a.options.softcap = x;
        break;
      case 2:
        a.options.window_left = bytes.integer();
        break;
      case 3:
        a.options.window_right = bytes.integer();
        break;
      case 4:
        a.options.alignment = static_cast<MaskAlignment>(bytes.below(3));
        break;
      default:
        a.options.causal = !a.options.causal;
    }
    return;
  }
  if (which > Index::count) {  // a length
    auto& list = a.lengths[static_cast<std::size_t>(bytes.below(4))];
    const int entry = bytes.below(lengths_capacity);
    list[static_cast<std::size_t>(entry)] = static_cast<std::int32_t>(bytes.integer());
    return;
  }
  TensorView& t = a.tensor[static_cast<std::size_t>(which)];
  const auto d = static_cast<std::size_t>(bytes.below(TensorView::max_rank));
  switch (bytes.below(8)) {
    case 0:
      t.shape[d] = bytes.integer();
      break;
    case 1:
      t.strides[d] = bytes.integer();
      break;
    case 2:
      t.rank = static_cast<int>(bytes.integer());
      break;
    case 3:
      t.dtype = static_cast<DType>(bytes.below(7));
      break;
    case 4:
      t.device = {static_cast<DeviceType>(bytes.below(3)), static_cast<int>(bytes.integer())};
      break;
    case 5:  // lengths are really looked at: theirs is the one pointer that stays
      if (which < cu_seqlens_q) t.data = reinterpret_cast<void*>(static_cast<std::uintptr_t>(bytes.integer()));
      break;
    case 6:
      t.data = nullptr;
      break;
    default:
      a.present[static_cast<std::size_t>(which)] = !a.present[static_cast<std::size_t>(which)];
  }
}

// A caller's promise: as many lengths as the shape says.
void keep_lengths_readable(Arguments& a) {
  for (Index which : {cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k}) {
    TensorView& t = a.tensor[which];
    t.shape[0] = std::min<std::int64_t>(t.shape[0], lengths_capacity);
  }
}

struct Reach {
  std::int64_t lowest = 0, highest = 0;  // element offsets from data
};

Reach reach_of(const ConstTensorView& t) {
  Reach reach;
  for (int d = 0; d < t.rank; ++d) {
    const auto at = static_cast<std::size_t>(d);
    const std::int64_t far = t.strides[at] * (t.shape[at] - 1);
    (far < 0 ? reach.lowest : reach.highest) += far;
  }
  return reach;
}

void check_inside(const ConstTensorView& t, std::int64_t offset, const char* broken) {
  const Reach reach = reach_of(t);
  require(reach.lowest <= offset && offset <= reach.highest, broken);
}

// What engines rely on, at the corners of the first and last sequences.
void check_problem(const Arguments& a, const Problem& p, double flops) {
  require(p.batch >= 0 && p.heads_kv >= 1 && p.heads_q >= 1 && p.heads_q % p.heads_kv == 0, "heads");
  require(p.head_dim >= 1 && p.head_dim <= 256 && p.head_dim_v >= 1 && p.head_dim_v <= 256, "head_dim");
  require(std::isfinite(p.softmax_scale) && std::isfinite(p.softcap) && p.softcap >= 0, "options");
  require(p.window_left >= 0 && p.window_right >= 0, "window");
  require(std::isfinite(flops) && flops >= 0, "flops");
  require(!p.to_string().empty(), "a problem without words");
  // Lengths on a GPU are not looked at, here or in check().
  if (p.device.type != DeviceType::cpu) return;
  for (std::int64_t b : {std::int64_t{0}, p.batch / 2, p.batch - 1}) {
    if (b < 0 || b >= p.batch) continue;
    const core::Sequence s = p.sequence(b);
    require(s.seqlen_q >= 0 && s.seqlen_q <= p.max_seqlen_q, "seqlen_q");
    require(s.seqlen_kv >= 0 && s.seqlen_kv <= p.max_seqlen_kv, "seqlen_kv");
    for (std::int64_t head : {std::int64_t{0}, p.heads_q - 1}) {
      for (std::int64_t i : {std::int64_t{0}, s.seqlen_q - 1}) {
        if (i < 0 || s.seqlen_q == 0) continue;
        check_inside(a.tensor[query], s.q_offset(p.query, head, i), "a row of query outside the tensor");
        const core::Range seen = core::keys_seen_by_any(s.band, {i, i + 1}, s.seqlen_kv);
        require(seen.begin >= 0 && seen.end <= s.seqlen_kv, "keys that are none");
        if (p.bias && s.seqlen_kv > 0) {
          check_inside(a.tensor[bias], p.bias_offset(b, head, i) + s.seqlen_kv - 1, "a bias outside the tensor");
        }
      }
      for (std::int64_t j : {std::int64_t{0}, s.seqlen_kv - 1}) {
        if (j < 0 || s.seqlen_kv == 0) continue;
        check_inside(a.tensor[key], s.kv_offset(p.key, head / p.group(), j), "a row of key outside the tensor");
        check_inside(a.tensor[value], s.kv_offset(p.value, head / p.group(), j), "a row of value outside the tensor");
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const bool is_forward = bytes.below(2) == 0;
  Arguments arguments;
  make_sound(bytes, arguments);
  while (!bytes.empty()) spoil(bytes, arguments);
  keep_lengths_readable(arguments);
  try {
    if (is_forward) {
      const core::ForwardProblem problem = core::check(arguments.forward());
      check_problem(arguments, problem, problem.flops());
    } else {
      const core::BackwardProblem problem = core::check(arguments.backward());
      check_problem(arguments, problem, problem.flops());
    }
  } catch (const InvalidArgument& error) {
    require(!error.argument().empty() && std::string(error.what()).size() > error.argument().size() + 2,
            "an error without words");
  }
  return 0;
}
