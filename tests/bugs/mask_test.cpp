// Masks: which keys are visited, and rows that see none: classes 11 and 26.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bugs/bugs.h"

namespace flash3::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// With equal scores the weights show what is seen: value is the identity, so that out is P; d_out is the identity, so
// that d_value is P transposed. Compared exactly, but for the rounding of 1 / n.
void expect_seen(const TestedEngine& engine, const Case& c) {
  const std::int64_t rows = c.query.of(0), keys = c.key.of(0);
  const auto t = run(engine, c, Passes::forward_and_backward, [&](Tensors& x) {
    for (std::int64_t n = 0; n < x.query.numel(); ++n) x.query.set(n, 0);
    for (std::int64_t n = 0; n < x.value.numel(); ++n) {
      if (!x.value.is_poison(n)) x.value.set(n, n / c.head_dim_v == n % c.head_dim_v ? 1 : 0);
    }
    for (std::int64_t n = 0; n < x.d_out.numel(); ++n) x.d_out.set(n, n / c.head_dim_v == n % c.head_dim_v ? 1 : 0);
  });
  if (!t) return;
  for (std::int64_t i = 0; i < rows; ++i) {
    std::int64_t count = 0;
    for (std::int64_t j = 0; j < keys; ++j) count += c.sees(0, i, j) ? 1 : 0;
    for (std::int64_t j = 0; j < keys; ++j) {
      const double wanted = c.sees(0, i, j) ? 1 / static_cast<double>(count) : 0;
      ASSERT_NEAR(t->out.get(i * c.head_dim_v + j), wanted, 1e-6 * wanted)
          << name_of(engine.engine) << " out, query " << i << " key " << j << "\n  " << c.to_string();
      ASSERT_NEAR(t->d_value.get(j * c.head_dim_v + i), wanted, 1e-6 * wanted)
          << name_of(engine.engine) << " d_value, query " << i << " key " << j << "\n  " << c.to_string();
    }
  }
}

Case window_case(std::int64_t seqlen_q, std::int64_t seqlen_kv, std::int64_t left, std::int64_t right, bool causal,
                 bool top_left) {
  Case c = small_case(DType::float32);
  c.heads_q = c.heads_kv = 1;
  c.head_dim = 1;
  c.head_dim_v = std::max<std::int64_t>({seqlen_q, seqlen_kv, 1});
  c.query = Lengths::fixed(1, seqlen_q);
  c.key = Lengths::fixed(1, seqlen_kv);
  if (left >= 0) c.options.window_left = left;
  if (right >= 0) c.options.window_right = right;
  c.options.causal = causal;
  c.options.alignment = top_left ? MaskAlignment::top_left : MaskAlignment::bottom_right;
  return c;
}

TEST(BugClass, Number11EverySmallWindow) {
  for (const TestedEngine& engine : engines_present()) {
    for (std::int64_t seqlen_q = 0; seqlen_q <= 4; ++seqlen_q) {
      for (std::int64_t seqlen_kv = 0; seqlen_kv <= 4; ++seqlen_kv) {
        for (std::int64_t left = -1; left <= 4; ++left) {
          for (std::int64_t right = -1; right <= 4; ++right) {
            for (bool causal : {false, true}) {
              for (bool top_left : {false, true}) {
                expect_seen(engine, window_case(seqlen_q, seqlen_kv, left, right, causal, top_left));
                if (HasFatalFailure()) return;
              }
            }
          }
        }
      }
    }
  }
}

TEST(BugClass, Number11WindowsAcrossTiles) {
  const std::int64_t every = std::max<std::int64_t>(1, 7 / cases(7));  // where code is slow, not all of them
  std::int64_t number = 0;
  for (const TestedEngine& engine : engines_present()) {
    if (engine.engine == Engine::reference) continue;  // has no tiles
    for (std::int64_t seqlen_q : {63, 130, 200}) {
      for (std::int64_t seqlen_kv : {65, 129, 256}) {
        for (std::int64_t left : {-1, 0, 1, 31, 63, 64, 65, 128}) {
          for (std::int64_t right : {-1, 0, 1, 15, 63, 64, 65, 128}) {
            if (number++ % every != 0) continue;
            expect_seen(engine, window_case(seqlen_q, seqlen_kv, left, right, false, (left + right) % 3 == 0));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(BugClass, Number11WindowsBeyondEverything) {
  for (std::int64_t window : {std::int64_t{1} << 31, std::int64_t{1} << 40, std::numeric_limits<std::int64_t>::max()}) {
    for (bool top_left : {false, true}) {
      Case c = window_case(70, 33, window, window, false, top_left);
      for (const TestedEngine& engine : engines_present()) expect_seen(engine, c);
      c.options.causal = true;
      for (const TestedEngine& engine : engines_present()) expect_seen(engine, c);
    }
  }
}

TEST(BugClass, Number26RowsThatSeeNothing) {
  for (DType dtype : engine_dtypes) {
    for (bool sinks : {false, true}) {
      Case c = small_case(dtype);
      c.sinks = sinks;
      c.d_lse = true;
      c.query = Lengths::fixed(2, 150);  // causal from the bottom right: the first rows see nothing
      c.options.causal = true;
      // What such rows hold has no influence.
      const auto poison_blind_rows = [&](Tensors& t) {
        for (std::int64_t b = 0; b < c.batch(); ++b) {
          for (std::int64_t i = 0; i < c.query.of(b); ++i) {
            if (c.sees_any(b, i)) continue;
            for (std::int64_t n = 0; n < c.heads_q * c.head_dim; ++n) {
              t.query.set_poison(c.query_element(b, i, 0, c.head_dim) + n);
              t.d_out.set_poison(c.query_element(b, i, 0, c.head_dim_v) + n);
            }
            for (std::int64_t head = 0; head < c.heads_q; ++head) t.d_lse.set_poison(c.row_element(b, i, head));
          }
        }
      };
      verify(c, Passes::forward_and_backward, again, poison_blind_rows);
      c.query = Lengths::variable({150, 3});
      c.key = Lengths::variable({20, 0});
      verify(c, Passes::forward_and_backward, again, poison_blind_rows);
    }
  }
}

TEST(BugClass, Number26BiasesThatHideWholeRows) {
  for (DType dtype : engine_dtypes) {
    for (bool sinks : {false, true}) {
      Case c = small_case(dtype);
      c.sinks = sinks;
      c.bias = BiasShape{true, true, true, true};
      // Every third row whole, and in the others whole tiles, from the first or to the last key.
      verify(c, Passes::forward_and_backward, again, [](Tensors& t) {
        const std::int64_t keys = t.bias.shape()[3];
        for (std::int64_t n = 0; n < t.bias.numel(); ++n) {
          const std::int64_t row = n / keys, key = n % keys;
          if (row % 3 == 0 || (row % 3 == 1 && key < 66) || (row % 3 == 2 && key > 15)) t.bias.set(n, -infinity);
        }
      });
    }
  }
}

TEST(BugClass, Number26LseFarBelowWhatExpCanHold) {
  for (DType dtype : engine_dtypes) {
    for (double shift : {-100.0, -1000.0, 1000.0}) {
      Case c = small_case(dtype);
      c.bias = BiasShape{false, false, false, true};
      const auto shifted = [&](Tensors& t) {
        for (std::int64_t n = 0; n < t.bias.numel(); ++n) t.bias.set(n, t.bias.get(n) + shift);
      };
      verify(c, Passes::forward_and_backward, again, shifted);
      // A sink that takes all the weight, or none.
      c.sinks = true;
      verify(c, Passes::forward_and_backward, again, shifted);
    }
  }
}

TEST(BugClass, Number26SinksOfEverySize) {
  for (DType dtype : engine_dtypes) {
    for (double sink : {-infinity, -1e30, -200.0, 200.0, 1e30}) {
      Case c = small_case(dtype);
      c.sinks = true;
      c.d_lse = true;
      const Passes passes = std::abs(sink) > 1e9 && !std::isinf(sink) ? Passes::forward : Passes::forward_and_backward;
      verify(c, passes, again, [&](Tensors& t) {
        for (std::int64_t n = 0; n < t.sinks.numel(); ++n) t.sinks.set(n, sink);
      });
    }
  }
}

}  // namespace
}  // namespace flash3::test
