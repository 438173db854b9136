// Shapes that engines are known to stumble over, each tried on purpose, forward and backward, on every engine.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/environment.h"
#include "support/verify.h"

namespace flash3::test {
namespace {

constexpr const char* again = "a directed case: it stands in directed_test.cpp";

class Directed : public testing::TestWithParam<DType> {
 protected:
  Case base() const {
    Case c;
    c.dtype = GetParam();
    c.head_dim = c.head_dim_v = 16;
    return c;
  }
};

TEST_P(Directed, EveryHeadDimWithEveryValueHeadDim) {
  for (std::int64_t head_dim : {1, 7, 32, 33, 64, 96, 128, 192, 256}) {
    for (std::int64_t head_dim_v : {1, 7, 32, 33, 64, 96, 128, 192, 256}) {
      Case c = base();
      c.seed = static_cast<std::uint64_t>(head_dim * 1000 + head_dim_v);
      c.head_dim = head_dim;
      c.head_dim_v = head_dim_v;
      c.heads_q = 2;
      c.query = Lengths::fixed(1, 37);
      c.key = Lengths::fixed(1, 70);
      c.options.causal = head_dim_v % 2 == 0;
      verify(c, Passes::forward_and_backward, again);
    }
  }
}

TEST_P(Directed, LengthsAroundTileBoundaries) {
  const std::vector<std::int64_t> lengths{1,  2,  3,   4,   15,  16,  17,  31,  32,  33,  63,
                                          64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513};
  const auto check = [&](std::int64_t seqlen_q, std::int64_t seqlen_kv, bool causal) {
    Case c = base();
    c.seed = static_cast<std::uint64_t>(seqlen_q * 1000 + seqlen_kv);
    c.query = Lengths::fixed(1, seqlen_q);
    c.key = Lengths::fixed(1, seqlen_kv);
    c.options.causal = causal;
    verify(c, Passes::forward_and_backward, again);
  };
  for (std::int64_t length : lengths) {
    check(length, length, true);
    check(length, length, false);
    for (std::int64_t other : {1, 64, 129}) {
      check(length, other, false);
      check(other, length, length % 2 == 0);
    }
  }
}

TEST_P(Directed, HeadGroups) {
  using Heads = std::pair<std::int64_t, std::int64_t>;
  for (const auto& [heads_q, heads_kv] : {Heads{1, 1}, {2, 1}, {8, 1}, {8, 2}, {6, 3}, {12, 4}, {7, 7}, {40, 1}}) {
    for (bool varlen : {false, true}) {
      Case c = base();
      c.seed = static_cast<std::uint64_t>(heads_q * 100 + heads_kv);
      c.heads_q = heads_q;
      c.heads_kv = heads_kv;
      c.query = varlen ? Lengths::variable({17, 0, 40, 1}) : Lengths::fixed(3, 33);
      c.key = varlen ? Lengths::variable({20, 9, 40, 70}) : Lengths::fixed(3, 45);
      c.options.causal = true;
      verify(c, Passes::forward_and_backward, again);
    }
  }
}

TEST_P(Directed, Windows) {
  for (const auto& [seqlen_q, seqlen_kv] : {std::pair{130, 130}, std::pair{65, 200}, std::pair{200, 65}}) {
    for (std::int64_t left : {-1, 0, 1, 31, 64, 150}) {
      for (std::int64_t right : {-1, 0, 1, 33, 150}) {
        Case c = base();
        c.seed = static_cast<std::uint64_t>(seqlen_q * 100000 + left * 1000 + right + 2000);
        c.query = Lengths::fixed(1, seqlen_q);
        c.key = Lengths::fixed(1, seqlen_kv);
        if (left >= 0) c.options.window_left = left;
        if (right >= 0) c.options.window_right = right;
        c.options.alignment = (left + right) % 2 == 0 ? MaskAlignment::bottom_right : MaskAlignment::top_left;
        verify(c, Passes::forward_and_backward, again);
      }
    }
  }
}

TEST_P(Directed, EveryWayToBroadcastABias) {
  for (int ways = 0; ways < 16; ++ways) {
    for (bool varlen : {false, true}) {
      Case c = base();
      c.seed = static_cast<std::uint64_t>(ways + 100);
      c.heads_q = 4;
      c.heads_kv = 2;
      c.query = varlen ? Lengths::variable({17, 3, 40}) : Lengths::fixed(3, 33);
      c.key = varlen ? Lengths::variable({20, 9, 40}) : Lengths::fixed(3, 45);
      c.bias = BiasShape{(ways & 1) != 0, (ways & 2) != 0, (ways & 4) != 0, (ways & 8) != 0};
      c.options.causal = varlen;
      verify(c, Passes::forward_and_backward, again);
    }
  }
}

TEST_P(Directed, OneDecodedQueryOnLongKeys) {
  for (std::int64_t seqlen_kv : {1000, 4099}) {
    Case c = base();
    c.seed = static_cast<std::uint64_t>(seqlen_kv);
    c.heads_q = 8;
    c.heads_kv = 2;
    c.head_dim = c.head_dim_v = 64;
    c.query = Lengths::fixed(2, 1);
    c.key = Lengths::fixed(2, seqlen_kv);
    c.key.used = {seqlen_kv, seqlen_kv / 3};
    c.options.causal = true;
    verify(c, Passes::forward_and_backward, again);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Directed, testing::Values(DType::float32, DType::float16, DType::bfloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

}  // namespace
}  // namespace flash3::test
