// The border: every argument is looked at once, here, and refused in the user's words.
#include "core/check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace flash3::core {
namespace {

// No address space is larger, and sums of a few of these stay far from overflow, here and in every engine.
constexpr std::int64_t max_extent = std::int64_t{1} << 48;
constexpr std::int64_t max_reach = std::int64_t{1} << 57;

template <class... Args>
[[noreturn]] void refuse(std::string_view argument, fmt::format_string<Args...> format, Args&&... args) {
  throw InvalidArgument(std::string(argument), fmt::format(format, std::forward<Args>(args)...));
}

std::span<const std::int64_t> shape_of(const ConstTensorView& t) {
  return {t.shape.data(), static_cast<std::size_t>(t.rank)};
}

std::string text(std::span<const std::int64_t> values) { return fmt::format("({})", fmt::join(values, ", ")); }

std::int64_t extent(const ConstTensorView& t, int d) { return t.shape[static_cast<std::size_t>(d)]; }
std::int64_t stride(const ConstTensorView& t, int d) { return t.strides[static_cast<std::size_t>(d)]; }

bool multiply_overflows(std::int64_t a, std::int64_t b, std::int64_t& product) {
  return __builtin_mul_overflow(a, b, &product);
}

// What holds for any tensor: a sane shape, data where there are elements, a contiguous last dimension, and addresses
// that fit 64 bits.
void check_tensor(std::string_view name, const ConstTensorView& t) {
  if (t.rank < 0 || t.rank > ConstTensorView::max_rank) {
    refuse(name, "rank is {}, accepted are 0 to {}", t.rank, ConstTensorView::max_rank);
  }
  const auto bytes = static_cast<std::int64_t>(size_of(t.dtype));
  if (bytes == 0) refuse(name, "dtype code {} is not a flash3 dtype", static_cast<int>(t.dtype));
  std::int64_t elements = 1;
  for (int d = 0; d < t.rank; ++d) {
    if (extent(t, d) < 0) refuse(name, "shape {} has a negative extent", text(shape_of(t)));
    if (extent(t, d) > max_extent) refuse(name, "shape {} has an extent beyond 2^48", text(shape_of(t)));
    if (extent(t, d) != 0 && multiply_overflows(elements, extent(t, d), elements)) {
      refuse(name, "shape {} has more elements than 64 bits count", text(shape_of(t)));
    }
  }
  if (t.numel() == 0) return;
  if (t.data == nullptr) refuse(name, "data is null, but shape {} has elements", text(shape_of(t)));
  if (reinterpret_cast<std::uintptr_t>(t.data) % static_cast<std::uintptr_t>(bytes) != 0) {
    refuse(name, "data at {} is not aligned to its {}-byte elements", fmt::ptr(t.data), bytes);
  }
  std::int64_t before = 0, after = bytes;  // the bytes that the elements span, on either side of data
  const auto address = reinterpret_cast<std::uintptr_t>(t.data);
  for (int d = 0; d < t.rank; ++d) {
    std::int64_t& side = stride(t, d) < 0 ? before : after;
    std::int64_t part = 0;
    if (stride(t, d) == std::numeric_limits<std::int64_t>::min() ||
        multiply_overflows(std::abs(stride(t, d)), extent(t, d) - 1, part) || multiply_overflows(part, bytes, part) ||
        __builtin_add_overflow(side, part, &side) || side > max_reach ||
        static_cast<std::uintptr_t>(before) > address ||
        static_cast<std::uintptr_t>(after) > std::numeric_limits<std::uintptr_t>::max() - address) {
      refuse(name, "stride {} of dimension {} leads beyond 64-bit addresses", stride(t, d), d);
    }
  }
  const int last = t.rank - 1;
  if (t.rank > 0 && extent(t, last) > 1 && stride(t, last) != 1) {
    refuse(name, "the last dimension has stride {}, accepted is 1 (contiguous)", stride(t, last));
  }
}

void check_dtype(std::string_view name, const ConstTensorView& t, DType wanted, std::string_view why) {
  if (t.dtype != wanted) refuse(name, "dtype is {}, accepted is {} ({})", name_of(t.dtype), name_of(wanted), why);
}

void check_device(std::string_view name, const ConstTensorView& t, Device wanted, std::string_view like = "query") {
  if (!(t.device == wanted)) {
    refuse(name, "is on {}, accepted is {}, where {} is", name_of(t.device), name_of(wanted), like);
  }
}

void check_shape(std::string_view name, const ConstTensorView& t, std::span<const std::int64_t> wanted,
                 std::string_view meaning) {
  const auto shape = shape_of(t);
  if (!std::equal(shape.begin(), shape.end(), wanted.begin(), wanted.end())) {
    refuse(name, "shape is {}, accepted is {} = {}", text(shape), meaning, text(wanted));
  }
}

// Byte terms of an address: stride * i for 0 <= i < extent, the stride positive, and the lowest address itself.
struct Term {
  std::int64_t stride;
  std::int64_t count;  // the largest i
};

struct Layout {
  std::uintptr_t lowest = 0;
  std::int64_t reach = 0;  // from the lowest byte to one past the highest
  std::vector<Term> terms;
};

Layout layout_of(const ConstTensorView& t) {
  Layout layout;
  const auto bytes = static_cast<std::int64_t>(size_of(t.dtype));
  layout.lowest = reinterpret_cast<std::uintptr_t>(t.data);
  layout.reach = bytes;
  for (int d = 0; d < t.rank; ++d) {
    if (extent(t, d) <= 1) continue;
    const std::int64_t step = std::abs(stride(t, d)) * bytes;
    const std::int64_t span = step * (extent(t, d) - 1);
    if (stride(t, d) < 0) layout.lowest -= static_cast<std::uintptr_t>(span);
    layout.reach += span;
    if (step != 0) layout.terms.push_back({step, extent(t, d) - 1});
  }
  return layout;
}

// One step of the difference between two addresses: stride * k for lowest <= k <= highest.
struct Step {
  std::int64_t stride;
  std::int64_t lowest, highest;
};

// Is there a choice of the k_n with |difference - sum k_n stride_n| < width? Steps by falling stride. Nested strides
// leave one or two choices a level, so this ends at once; the budget is for hostile strides, where it says yes.
bool reachable(std::span<const Step> steps, std::int64_t difference, std::int64_t width, int& budget) {
  if (--budget < 0) return true;
  if (std::abs(difference) < width) return true;
  if (steps.empty()) return false;
  const Step step = steps.front();
  const std::span<const Step> smaller = steps.subspan(1);
  std::int64_t low = 1 - width, high = width - 1;  // what the smaller steps can still bridge
  for (const Step& s : smaller) {
    low += s.stride * s.lowest;
    high += s.stride * s.highest;
  }
  const auto floor_div = [](std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); };
  const std::int64_t first = std::max(-floor_div(high - difference, step.stride), step.lowest);
  const std::int64_t last = std::min(floor_div(difference - low, step.stride), step.highest);
  for (std::int64_t k = first; k <= last; ++k) {
    if (reachable(smaller, difference - k * step.stride, width, budget)) return true;
  }
  return false;
}

struct Named {
  std::string_view name;
  ConstTensorView view;
};

void check_overlaps(std::span<const Named> inputs, std::span<const Named> outputs) {
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    if (overlaps_itself(outputs[o].view)) {
      refuse(outputs[o].name, "elements of this output share memory (strides {} for shape {})",
             text({outputs[o].view.strides.data(), static_cast<std::size_t>(outputs[o].view.rank)}),
             text(shape_of(outputs[o].view)));
    }
    for (const Named& input : inputs) {
      if (overlap(outputs[o].view, input.view)) {
        refuse(outputs[o].name, "this output overlaps {} in memory", input.name);
      }
    }
    for (std::size_t other = 0; other < o; ++other) {
      if (overlap(outputs[o].view, outputs[other].view)) {
        refuse(outputs[o].name, "this output overlaps the output {} in memory", outputs[other].name);
      }
    }
  }
}

struct Side {
  std::int64_t batch = 0;
  std::int64_t max_seqlen = 0;
  std::int64_t total = 0;  // rows of the tensor: seqlen, or all sequences' together
};

// The lengths of one side (query, or key and value) and their tensors.
Side check_side(std::string_view tensor_name, const ConstTensorView& tensor, std::string_view cu_name,
                const std::optional<ConstTensorView>& cu_seqlens, std::string_view used_name,
                const std::optional<ConstTensorView>& seqused, std::string_view max_name,
                const std::optional<std::int64_t>& max_seqlen, Device device) {
  if (max_seqlen && *max_seqlen < 0) refuse(max_name, "is {}, accepted is 0 or more, or unset", *max_seqlen);
  Side side;
  const auto check_lengths = [&](std::string_view name, const ConstTensorView& t) {
    check_tensor(name, t);
    check_dtype(name, t, DType::int32, "lengths");
    check_device(name, t, device);
    if (t.rank != 1) refuse(name, "rank is {}, accepted is 1", t.rank);
  };
  if (cu_seqlens) {
    check_lengths(cu_name, *cu_seqlens);
    if (tensor.rank != 3) {
      refuse(tensor_name, "shape is {}, accepted with {} is rank 3 (total, heads, head_dim)", text(shape_of(tensor)),
             cu_name);
    }
    if (extent(*cu_seqlens, 0) < 1) refuse(cu_name, "is empty, accepted is (batch + 1)");
    side.batch = extent(*cu_seqlens, 0) - 1;
    side.total = extent(tensor, 0);
    side.max_seqlen = std::min(max_seqlen.value_or(side.total), side.total);
    if (device.type == DeviceType::cpu) {
      const auto* cu = static_cast<const std::int32_t*>(cu_seqlens->data);
      side.max_seqlen = 0;
      if (cu[0] != 0) refuse(cu_name, "starts at {}, accepted is 0", cu[0]);
      for (std::int64_t b = 0; b < side.batch; ++b) {
        if (cu[b + 1] < cu[b]) {
          refuse(cu_name, "falls from {} to {} at entry {}, accepted is a sequence that never decreases", cu[b],
                 cu[b + 1], b + 1);
        }
        side.max_seqlen = std::max<std::int64_t>(side.max_seqlen, cu[b + 1] - cu[b]);
      }
      if (max_seqlen && *max_seqlen < side.max_seqlen) {
        refuse(max_name, "is {}, but the longest sequence of {} has {} rows", *max_seqlen, cu_name, side.max_seqlen);
      }
      if (cu[side.batch] > side.total) {
        refuse(cu_name, "ends at {}, beyond the {} rows of {}", cu[side.batch], side.total, tensor_name);
      }
    }
  } else {
    if (tensor.rank != 4) {
      refuse(tensor_name,
             "shape is {}, accepted is rank 4 (batch, seqlen, heads, head_dim), or rank 3 (total, heads, head_dim) "
             "with {}",
             text(shape_of(tensor)), cu_name);
    }
    side.batch = extent(tensor, 0);
    side.total = side.max_seqlen = extent(tensor, 1);
  }
  if (seqused) {
    check_lengths(used_name, *seqused);
    if (extent(*seqused, 0) != side.batch) {
      refuse(used_name, "has {} entries, accepted is one a sequence: {}", extent(*seqused, 0), side.batch);
    }
    if (device.type == DeviceType::cpu) {
      const auto* used = static_cast<const std::int32_t*>(seqused->data);
      const auto* cu = cu_seqlens ? static_cast<const std::int32_t*>(cu_seqlens->data) : nullptr;
      for (std::int64_t b = 0; b < side.batch; ++b) {
        const std::int64_t room = cu ? cu[b + 1] - cu[b] : side.max_seqlen;
        if (used[b] < 0 || used[b] > room) {
          refuse(used_name, "entry {} is {}, accepted is 0 to the sequence's {} rows", b, used[b], room);
        }
      }
    }
  }
  return side;
}

// Rank 3 or 4 with heads and head_dim last becomes batch, seq and head strides.
template <class Pointer>
BasicOperand<Pointer> operand(const BasicTensorView<Pointer>& t) {
  const bool batched = t.rank == 4;
  const std::size_t d = batched ? 1 : 0;
  return {t.data, t.dtype, batched ? t.strides[0] : 0, t.strides[d], t.strides[d + 1]};
}

// (batch, heads, seqlen) or (heads, total).
template <class Pointer>
BasicOperand<Pointer> row_operand(const BasicTensorView<Pointer>& t) {
  const bool batched = t.rank == 3;
  return {t.data, t.dtype, batched ? t.strides[0] : 0, 1, t.strides[batched ? 1 : 0]};
}

template <class Pointer>
BasicOperand<Pointer> bias_operand(const BasicTensorView<Pointer>& t) {
  const auto broadcast = [&](std::size_t d) { return t.shape[d] == 1 ? 0 : t.strides[d]; };
  return {t.data, t.dtype, broadcast(0), broadcast(2), broadcast(1)};
}

void check_options(const AttentionOptions& options, Problem& problem) {
  const double scale = options.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
  if (!std::isfinite(scale)) refuse("softmax_scale", "is {}, accepted is any finite number", scale);
  if (!std::isfinite(options.softcap) || options.softcap < 0) {
    refuse("softcap", "is {}, accepted is 0 (off) or a positive finite number", options.softcap);
  }
  const auto window = [](std::string_view name, const std::optional<std::int64_t>& w) {
    if (w && *w < 0) refuse(name, "is {}, accepted is 0 or more, or unset for no limit", *w);
    return w ? std::min(*w, unlimited) : unlimited;
  };
  if (options.alignment != MaskAlignment::bottom_right && options.alignment != MaskAlignment::top_left) {
    refuse("alignment", "code {} is neither bottom_right nor top_left", static_cast<int>(options.alignment));
  }
  problem.softmax_scale = scale;
  problem.softcap = options.softcap;
  problem.window_left = window("window_left", options.window_left);
  problem.window_right = window("window_right", options.window_right);
  if (options.causal) problem.window_right = std::min<std::int64_t>(problem.window_right, 0);
  problem.bottom_right = options.alignment == MaskAlignment::bottom_right;
}

std::vector<std::int64_t> row_shape(const ConstTensorView& query) {
  if (query.rank == 4) return {extent(query, 0), extent(query, 2), extent(query, 1)};
  return {extent(query, 1), extent(query, 0)};
}

// What forward and backward arguments have in common, by the same names. `inputs` collects them for the overlap check.
template <class Args>
void check_common(const Args& args, Problem& problem, std::vector<Named>& inputs) {
  const ConstTensorView &query = args.query, &key = args.key, &value = args.value;
  check_tensor("query", query);
  check_tensor("key", key);
  check_tensor("value", value);
  if (query.dtype == DType::int32) {
    refuse("query", "dtype is int32, accepted are float32, float16, bfloat16, float8_e4m3 and float64");
  }
  if (query.device.type != DeviceType::cpu && query.device.type != DeviceType::cuda) {
    refuse("query", "device type code {} is neither cpu nor cuda", static_cast<int>(query.device.type));
  }
  if (query.device.index < 0) refuse("query", "device index is {}, accepted is 0 or more", query.device.index);
  for (const Named& t : {Named{"key", key}, Named{"value", value}}) {
    check_dtype(t.name, t.view, query.dtype, "that of query");
    check_device(t.name, t.view, query.device);
  }
  const Side q = check_side("query", query, "cu_seqlens_q", args.cu_seqlens_q, "seqused_q", args.seqused_q,
                            "max_seqlen_q", args.max_seqlen_q, query.device);
  const Side kv = check_side("key", key, "cu_seqlens_k", args.cu_seqlens_k, "seqused_k", args.seqused_k, "max_seqlen_k",
                             args.max_seqlen_k, query.device);
  if (q.batch != kv.batch) {
    refuse(args.cu_seqlens_k ? "cu_seqlens_k" : "key", "is for a batch of {}, accepted is query's batch of {}",
           kv.batch, q.batch);
  }

  problem.dtype = query.dtype;
  problem.device = query.device;
  problem.batch = q.batch;
  problem.heads_q = extent(query, query.rank - 2);
  problem.heads_kv = extent(key, key.rank - 2);
  problem.head_dim = extent(query, query.rank - 1);
  problem.head_dim_v = extent(value, std::max(value.rank, 1) - 1);
  problem.max_seqlen_q = q.max_seqlen;
  problem.max_seqlen_kv = kv.max_seqlen;
  problem.rows_q = q.total;
  problem.rows_kv = kv.total;

  if (problem.heads_q < 1) refuse("query", "has {} heads, accepted is 1 or more", problem.heads_q);
  if (problem.heads_kv < 1 || problem.heads_q % problem.heads_kv != 0) {
    refuse("key", "has {} heads, accepted is a divisor of query's {} heads", problem.heads_kv, problem.heads_q);
  }
  if (problem.head_dim < 1 || problem.head_dim > max_head_dim) {
    refuse("query", "head_dim is {}, accepted is 1 to {}", problem.head_dim, max_head_dim);
  }
  if (extent(key, key.rank - 1) != problem.head_dim) {
    refuse("key", "head_dim is {}, accepted is query's {}", extent(key, key.rank - 1), problem.head_dim);
  }
  std::vector<std::int64_t> value_shape(shape_of(key).begin(), shape_of(key).end());
  value_shape.back() = problem.head_dim_v;
  check_shape("value", value, value_shape, "key's shape but for head_dim_v");
  if (problem.head_dim_v < 1 || problem.head_dim_v > max_head_dim) {
    refuse("value", "head_dim_v is {}, accepted is 1 to {}", problem.head_dim_v, max_head_dim);
  }
  check_options(args.options, problem);

  problem.query = operand(query);
  problem.key = operand(key);
  problem.value = operand(value);
  inputs = {{"query", query}, {"key", key}, {"value", value}};
  const auto lengths = [&](std::string_view name, const std::optional<ConstTensorView>& t) -> const std::int32_t* {
    if (!t) return nullptr;
    inputs.push_back({name, *t});
    // An empty batch has no entries to point at, and no sequence will be asked for.
    return static_cast<const std::int32_t*>(t->data);
  };
  problem.cu_seqlens_q = lengths("cu_seqlens_q", args.cu_seqlens_q);
  problem.cu_seqlens_k = lengths("cu_seqlens_k", args.cu_seqlens_k);
  problem.seqused_q = lengths("seqused_q", args.seqused_q);
  problem.seqused_k = lengths("seqused_k", args.seqused_k);

  const DType rows = query.dtype == DType::float64 ? DType::float64 : DType::float32;
  if (args.sinks) {
    check_tensor("sinks", *args.sinks);
    check_dtype("sinks", *args.sinks, rows, "row statistics");
    check_device("sinks", *args.sinks, query.device);
    check_shape("sinks", *args.sinks, std::vector{problem.heads_q}, "(heads_q)");
    problem.sinks = {args.sinks->data, rows, 0, 0, 1};
    inputs.push_back({"sinks", *args.sinks});
  }
  if (args.bias) {
    const ConstTensorView& bias = *args.bias;
    check_tensor("bias", bias);
    if (bias.dtype != rows && bias.dtype != query.dtype) {
      refuse("bias", "dtype is {}, accepted are {} and query's {}", name_of(bias.dtype), name_of(rows),
             name_of(query.dtype));
    }
    check_device("bias", bias, query.device);
    // A variable-length batch may be padded further than its longest sequence.
    const auto fits = [&](int d, std::int64_t wanted, bool may_exceed) {
      return extent(bias, d) == wanted || (may_exceed && extent(bias, d) > wanted);
    };
    if (bias.rank != 4 || !(fits(0, problem.batch, false) || extent(bias, 0) == 1) ||
        !(fits(1, problem.heads_q, false) || extent(bias, 1) == 1) ||
        !(fits(2, problem.max_seqlen_q, args.cu_seqlens_q.has_value()) || extent(bias, 2) == 1) ||
        !fits(3, problem.max_seqlen_kv, args.cu_seqlens_k.has_value())) {
      refuse("bias", "shape is {}, accepted is (batch {} or 1, heads_q {} or 1, seqlen_q {} or 1, seqlen_kv {})",
             text(shape_of(bias)), problem.batch, problem.heads_q, problem.max_seqlen_q, problem.max_seqlen_kv);
    }
    problem.bias = bias_operand(bias);
    inputs.push_back({"bias", bias});
  }
}

// A tensor whose shape, dtype and device follow from the problem.
void check_like(std::string_view name, const ConstTensorView& t, std::span<const std::int64_t> shape,
                std::string_view meaning, DType dtype, std::string_view why, Device device,
                std::string_view device_of = "query") {
  check_tensor(name, t);
  check_shape(name, t, shape, meaning);
  check_dtype(name, t, dtype, why);
  check_device(name, t, device, device_of);
}

// (parts, batch, seqlen, heads, head_dim) or (parts, total, heads, head_dim).
template <class Pointer>
BasicPartsOperand<Pointer> parts_operand(const BasicTensorView<Pointer>& t) {
  const bool batched = t.rank == 5;
  const std::size_t d = batched ? 2 : 1;
  return {{t.data, t.dtype, batched ? t.strides[1] : 0, t.strides[d], t.strides[d + 1]}, t.strides[0]};
}

// (parts, batch, heads, seqlen) or (parts, heads, total).
template <class Pointer>
BasicPartsOperand<Pointer> parts_row_operand(const BasicTensorView<Pointer>& t) {
  const bool batched = t.rank == 4;
  return {{t.data, t.dtype, batched ? t.strides[1] : 0, 1, t.strides[batched ? 2 : 1]}, t.strides[0]};
}

// The shapes of a merge, all of which follow from that of parts_out.
struct MergeShapes {
  bool batched = false;
  std::vector<std::int64_t> parts_lse, out, lse;

  std::string_view lse_meaning() const { return batched ? "(batch, heads, seqlen)" : "(heads, total)"; }
};

// What a merge and its gradients have in common: `like_out` is out or d_out, which says the dtype.
MergeShapes check_merge(const ConstTensorView& parts_out, const ConstTensorView& parts_lse, std::string_view out_name,
                        const ConstTensorView& like_out, MergeShape& problem) {
  check_tensor("parts_out", parts_out);
  if (parts_out.rank != 4 && parts_out.rank != 5) {
    refuse("parts_out",
           "shape is {}, accepted is rank 5 (parts, batch, seqlen, heads, head_dim_v) or rank 4 (parts, total, heads, "
           "head_dim_v)",
           text(shape_of(parts_out)));
  }
  MergeShapes shapes;
  shapes.batched = parts_out.rank == 5;
  const int d = shapes.batched ? 2 : 1;
  problem.device = parts_out.device;
  problem.parts = extent(parts_out, 0);
  problem.batch = shapes.batched ? extent(parts_out, 1) : 1;
  problem.seqlen = extent(parts_out, d);
  problem.heads = extent(parts_out, d + 1);
  problem.head_dim = extent(parts_out, d + 2);
  if (problem.parts < 1) refuse("parts_out", "has {} parts, accepted is 1 or more", problem.parts);
  if (problem.head_dim < 1 || problem.head_dim > max_head_dim) {
    refuse("parts_out", "head_dim_v is {}, accepted is 1 to {}", problem.head_dim, max_head_dim);
  }
  const auto whole = shape_of(parts_out);
  shapes.out.assign(whole.begin() + 1, whole.end());
  shapes.lse = {problem.heads, problem.seqlen};
  if (shapes.batched) shapes.lse.insert(shapes.lse.begin(), problem.batch);
  shapes.parts_lse = shapes.lse;
  shapes.parts_lse.insert(shapes.parts_lse.begin(), problem.parts);

  check_tensor(out_name, like_out);
  check_shape(out_name, like_out, shapes.out, "a part's shape");
  check_device(out_name, like_out, problem.device, "parts_out");
  problem.dtype = like_out.dtype;
  if (problem.dtype != DType::float32 && problem.dtype != DType::float16 && problem.dtype != DType::bfloat16 &&
      problem.dtype != DType::float64) {
    refuse(out_name, "dtype is {}, accepted are float32, float16, bfloat16 and float64", name_of(problem.dtype));
  }
  if (parts_out.dtype != problem.dtype && (parts_out.dtype != DType::float32 || problem.dtype == DType::float64)) {
    refuse("parts_out", "dtype is {}, accepted is {}{}", name_of(parts_out.dtype), name_of(problem.dtype),
           problem.dtype == DType::float64 ? "" : " or float32");
  }
  const DType rows = problem.dtype == DType::float64 ? DType::float64 : DType::float32;
  check_like("parts_lse", parts_lse, shapes.parts_lse, "parts and then the shape of lse", rows, "row statistics",
             problem.device, "parts_out");
  problem.parts_out = parts_operand(parts_out);
  problem.parts_lse = parts_row_operand(parts_lse);
  return shapes;
}

}  // namespace

bool overlap(const ConstTensorView& a, const ConstTensorView& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const Layout la = layout_of(a), lb = layout_of(b);
  if (la.lowest + static_cast<std::uintptr_t>(la.reach) <= lb.lowest ||
      lb.lowest + static_cast<std::uintptr_t>(lb.reach) <= la.lowest) {
    return false;
  }
  // They share a byte where lowest_a + sum(stride_a i_a) and lowest_b + sum(stride_b i_b) come within an element. Terms
  // of equal stride act as one, whose index runs from minus b's largest to a's largest.
  std::vector<Step> steps;
  for (const Term& t : la.terms) steps.push_back({t.stride, 0, t.count});
  for (const Term& t : lb.terms) steps.push_back({t.stride, -t.count, 0});
  std::sort(steps.begin(), steps.end(), [](const Step& x, const Step& y) { return x.stride > y.stride; });
  std::vector<Step> merged;
  for (const Step& s : steps) {
    if (!merged.empty() && merged.back().stride == s.stride) {
      merged.back().lowest += s.lowest;
      merged.back().highest += s.highest;
    } else {
      merged.push_back(s);
    }
  }
  const auto width = static_cast<std::int64_t>(std::max(size_of(a.dtype), size_of(b.dtype)));
  int budget = 20000;
  return reachable(merged, static_cast<std::int64_t>(lb.lowest - la.lowest), width, budget);
}

bool overlaps_itself(const ConstTensorView& view) {
  if (view.numel() <= 1) return false;
  std::vector<Term> terms;
  for (int d = 0; d < view.rank; ++d) {
    if (extent(view, d) > 1) terms.push_back({std::abs(stride(view, d)), extent(view, d) - 1});
  }
  std::sort(terms.begin(), terms.end(), [](const Term& x, const Term& y) { return x.stride < y.stride; });
  std::int64_t reach = 0;
  for (const Term& t : terms) {
    if (t.stride <= reach) return true;
    reach += t.stride * t.count;
  }
  return false;
}

ForwardProblem check(const ForwardArgs& args) {
  ForwardProblem problem;
  std::vector<Named> inputs;
  check_common(args, problem, inputs);
  const DType rows = problem.dtype == DType::float64 ? DType::float64 : DType::float32;

  std::vector<std::int64_t> out_shape(shape_of(args.query).begin(), shape_of(args.query).end());
  out_shape.back() = problem.head_dim_v;
  check_like("out", args.out, out_shape, "query's shape with head_dim_v", problem.dtype, "that of query",
             problem.device);
  problem.out = operand(args.out);
  std::vector<Named> outputs{{"out", args.out}};
  if (args.lse) {
    check_like("lse", *args.lse, row_shape(args.query),
               args.query.rank == 4 ? "(batch, heads_q, seqlen_q)" : "(heads_q, total_q)", rows, "row statistics",
               problem.device);
    problem.lse = row_operand(*args.lse);
    outputs.push_back({"lse", *args.lse});
  }
  check_overlaps(inputs, outputs);
  return problem;
}

BackwardProblem check(const BackwardArgs& args) {
  BackwardProblem problem;
  std::vector<Named> inputs;
  check_common(args, problem, inputs);
  const DType rows = problem.dtype == DType::float64 ? DType::float64 : DType::float32;

  std::vector<std::int64_t> out_shape(shape_of(args.query).begin(), shape_of(args.query).end());
  out_shape.back() = problem.head_dim_v;
  const std::string_view rows_meaning = args.query.rank == 4 ? "(batch, heads_q, seqlen_q)" : "(heads_q, total_q)";
  for (const Named& t : {Named{"out", args.out}, Named{"d_out", args.d_out}}) {
    check_like(t.name, t.view, out_shape, "query's shape with head_dim_v", problem.dtype, "that of query",
               problem.device);
    inputs.push_back(t);
  }
  check_like("lse", args.lse, row_shape(args.query), rows_meaning, rows, "row statistics", problem.device);
  inputs.push_back({"lse", args.lse});
  problem.out = operand(args.out);
  problem.d_out = operand(args.d_out);
  problem.lse = row_operand(args.lse);
  if (args.d_lse) {
    check_like("d_lse", *args.d_lse, row_shape(args.query), rows_meaning, rows, "row statistics", problem.device);
    inputs.push_back({"d_lse", *args.d_lse});
    problem.d_lse = row_operand(*args.d_lse);
  }

  std::vector<Named> outputs{{"d_query", args.d_query}, {"d_key", args.d_key}, {"d_value", args.d_value}};
  const ConstTensorView* likes[] = {&args.query, &args.key, &args.value};
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    check_like(outputs[i].name, outputs[i].view, shape_of(*likes[i]), fmt::format("{}'s shape", inputs[i].name),
               problem.dtype, "that of query", problem.device);
  }
  problem.d_query = operand(args.d_query);
  problem.d_key = operand(args.d_key);
  problem.d_value = operand(args.d_value);
  if (args.d_sinks) {
    if (!args.sinks) refuse("d_sinks", "is given, but sinks is not");
    check_like("d_sinks", *args.d_sinks, std::vector{problem.heads_q}, "(heads_q)", rows, "row statistics",
               problem.device);
    problem.d_sinks = {args.d_sinks->data, rows, 0, 0, 1};
    outputs.push_back({"d_sinks", *args.d_sinks});
  }
  if (args.d_bias) {
    if (!args.bias) refuse("d_bias", "is given, but bias is not");
    check_like("d_bias", *args.d_bias, shape_of(*args.bias), "bias's shape", args.bias->dtype, "that of bias",
               problem.device);
    problem.d_bias = bias_operand(*args.d_bias);
    outputs.push_back({"d_bias", *args.d_bias});
  }
  check_overlaps(inputs, outputs);
  return problem;
}

MergeProblem check(const MergeArgs& args) {
  MergeProblem problem;
  const MergeShapes shapes = check_merge(args.parts_out, args.parts_lse, "out", args.out, problem);
  problem.out = operand(args.out);
  std::vector<Named> outputs{{"out", args.out}};
  if (args.lse) {
    check_like("lse", *args.lse, shapes.lse, shapes.lse_meaning(), args.parts_lse.dtype, "that of parts_lse",
               problem.device, "parts_out");
    problem.lse = row_operand(*args.lse);
    outputs.push_back({"lse", *args.lse});
  }
  check_overlaps(std::vector<Named>{{"parts_out", args.parts_out}, {"parts_lse", args.parts_lse}}, outputs);
  return problem;
}

MergeBackwardProblem check(const MergeBackwardArgs& args) {
  MergeBackwardProblem problem;
  const MergeShapes shapes = check_merge(args.parts_out, args.parts_lse, "d_out", args.d_out, problem);
  std::vector<Named> inputs{{"parts_out", args.parts_out}, {"parts_lse", args.parts_lse}, {"d_out", args.d_out}};
  problem.d_out = operand(args.d_out);
  if (args.d_lse) {
    check_like("d_lse", *args.d_lse, shapes.lse, shapes.lse_meaning(), args.parts_lse.dtype, "that of parts_lse",
               problem.device, "parts_out");
    problem.d_lse = row_operand(*args.d_lse);
    inputs.push_back({"d_lse", *args.d_lse});
  }
  check_like("d_parts_out", args.d_parts_out, shape_of(args.parts_out), "parts_out's shape", args.parts_out.dtype,
             "that of parts_out", problem.device, "parts_out");
  check_like("d_parts_lse", args.d_parts_lse, shapes.parts_lse, "parts_lse's shape", args.parts_lse.dtype,
             "that of parts_lse", problem.device, "parts_out");
  problem.d_parts_out = parts_operand(args.d_parts_out);
  problem.d_parts_lse = parts_row_operand(args.d_parts_lse);
  check_overlaps(inputs, std::vector<Named>{{"d_parts_out", args.d_parts_out}, {"d_parts_lse", args.d_parts_lse}});
  return problem;
}

}  // namespace flash3::core
