// What can be said of a problem without running it.
#include "core/problem.h"

#include <fmt/format.h>

namespace flash3::core {

double Problem::matmul_flops(std::int64_t dim) const {
  if (lengths_on_gpu()) return 0;
  const auto pairs_of = [this](std::int64_t b) {
    const Sequence s = sequence(b);
    return visible_pairs(s.band, s.seqlen_q, s.seqlen_kv);
  };
  double pairs = 0;
  if (!cu_seqlens_q && !cu_seqlens_k && !seqused_q && !seqused_k) {
    if (batch > 0) pairs = static_cast<double>(batch) * pairs_of(0);
  } else {
    for (std::int64_t b = 0; b < batch; ++b) pairs += pairs_of(b);
  }
  return 2.0 * pairs * static_cast<double>(dim) * static_cast<double>(heads_q);
}

std::string Problem::to_string() const {
  std::string text =
      fmt::format("{} on {}, batch {}, seqlen_q {}{}, seqlen_kv {}{}, heads {}", name_of(dtype), name_of(device), batch,
                  cu_seqlens_q ? "up to " : "", max_seqlen_q, cu_seqlens_k ? "up to " : "", max_seqlen_kv, heads_q);
  if (heads_kv != heads_q) text += fmt::format(" on {}", heads_kv);
  text += fmt::format(", head_dim {}", head_dim);
  if (head_dim_v != head_dim) text += fmt::format(" and {}", head_dim_v);
  text += fmt::format(", softmax_scale {:.6g}", softmax_scale);
  const bool banded = window_left < unlimited || window_right < unlimited;
  if (window_left == unlimited && window_right == 0) {
    text += ", causal";
  } else if (banded) {
    const auto side = [](std::int64_t w) { return w < unlimited ? fmt::format("{}", w) : std::string("unlimited"); };
    text += fmt::format(", window ({}, {})", side(window_left), side(window_right));
  }
  if (banded && !bottom_right) text += " top-left";
  if (softcap > 0) text += fmt::format(", softcap {:.6g}", softcap);
  if (sinks) text += ", sinks";
  if (bias) text += ", bias";
  return text;
}

}  // namespace flash3::core
