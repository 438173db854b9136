// Values that find weak arithmetic: NaN and infinities anywhere, rising maxima, flat rows: classes 27 and 31, and kin.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "bugs/bugs.h"

namespace flash3::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

TEST(BugClass, Number27InvisibleBytesHaveNoInfluence) {
  for (const TestedEngine& engine : engines_present()) {
    for (std::int64_t n = 0; n < cases(60); ++n) {
      Case c = random_case(case_seed(n), DType::float32, 1 << 13);
      c.dtype = *(engine_dtypes.begin() + n % 3);
      const auto poisoned = run(engine, c, Passes::forward_and_backward);
      if (!poisoned) continue;
      for (double filling : {0.0, 1e30, infinity}) {
        // Unwritten outputs keep what they hold, so only inputs are filled.
        const auto filled = run(engine, c, Passes::forward_and_backward, [&](Tensors& t) {
          for (Tensor* x : {&t.query, &t.key, &t.value, &t.bias, &t.d_out, &t.d_lse}) {
            for (std::int64_t e = 0; *x && e < x->numel(); ++e) {
              if (x->is_poison(e)) x->set(e, filling);
            }
          }
        });
        ASSERT_EQ(different_bits(*poisoned, *filled), "")
            << name_of(engine.engine) << " filled with " << filling << "\n  " << c.to_string()
            << "\n  again: " << command_for(c.seed);
      }
    }
  }
}

// Something that is not a number in one element of one input reaches the rows that see it and no others.
TEST(BugClass, Number31OneNonFiniteElementAnywhere) {
  for (std::int64_t n = 0; n < cases(300); ++n) {
    Random random = Random(case_seed(n)).fork(31);
    Case c = random_case(case_seed(n), DType::float32, 1 << 13);
    c.dtype = *(engine_dtypes.begin() + n % 3);
    c.distribution = Distribution::normal;
    const double value = random.pick({nan, nan, infinity, -infinity, 1e30, -1e30});
    // 1e30 is finite: its gradients are what is left of cancelled giants, which no two machines agree on.
    const Passes passes = std::isfinite(value) ? Passes::forward : Passes::forward_and_backward;
    const std::int64_t which = random.between(0, 6);
    const double where = random.uniform();
    const auto spoil = [&](Tensors& t) {
      Tensor* inputs[] = {&t.query, &t.key, &t.value, &t.bias, &t.sinks, &t.d_out, &t.d_lse};
      Tensor& x = *inputs[which];
      if (!x || x.numel() == 0) return;
      const auto element = static_cast<std::int64_t>(where * static_cast<double>(x.numel()));
      if (!x.is_poison(element)) x.set(element, value);
    };
    if (!verify(c, passes,
                fmt::format("with {} in input {} at {}; again: {}", value, which, where, command_for(c.seed)), spoil)) {
      return;
    }
  }
}

// The same in each column of tiles of a causal problem of several tiles, where a masked weight of 0 times NaN would
// leak.
TEST(BugClass, Number31NanInEveryTile) {
  for (DType dtype : engine_dtypes) {
    for (std::int64_t key = 0; key < 300; key += 37) {
      for (Tensor Tensors::*input : {&Tensors::key, &Tensors::value, &Tensors::query, &Tensors::d_out}) {
        Case c = small_case(dtype);
        c.heads_q = c.heads_kv = 1;
        c.query = c.key = Lengths::fixed(1, 300);
        c.options.causal = true;
        c.options.window_left = 100;
        verify(c, Passes::forward_and_backward, again, [&](Tensors& t) { (t.*input).set(key * 32 + 5, nan); });
      }
    }
  }
}

// Each tile's scores are larger than the last one's by a step: an online softmax rescales every time.
TEST(BugClass, RisingMaxima) {
  for (DType dtype : engine_dtypes) {
    for (double step : {1.0, -1.0, 1e2, -1e2, 1e4, -1e4}) {
      for (std::int64_t tile : {1, 16, 64}) {
        Case c = small_case(dtype);
        c.heads_q = c.heads_kv = 1;
        c.query = Lengths::fixed(1, 40);
        c.key = Lengths::fixed(1, 300);
        c.options.softmax_scale = 1.0;
        const Passes passes = std::abs(step) > 1e3 ? Passes::forward : Passes::forward_and_backward;
        verify(c, passes, again, [&](Tensors& t) {
          for (std::int64_t n = 0; n < t.query.numel(); ++n) t.query.set(n, n % 32 == 0 ? 1 : 0.001 * t.query.get(n));
          for (std::int64_t n = 0; n < t.key.numel(); n += 32) t.key.set(n, step * static_cast<double>(n / 32 / tile));
        });
      }
    }
  }
}

TEST(BugClass, LongFlatRows) {
  for (DType dtype : engine_dtypes) {
    Case c = small_case(dtype);
    c.heads_q = c.heads_kv = 1;
    c.head_dim = c.head_dim_v = 8;
    c.query = Lengths::fixed(1, 3);
    c.key = Lengths::fixed(1, 20000);
    c.options.softmax_scale = 0.0;
    verify(c, Passes::forward_and_backward, again);
  }
}

TEST(BugClass, OneKeyTakesAllTheWeight) {
  for (DType dtype : engine_dtypes) {
    for (std::int64_t winner : {0, 63, 64, 200, 299}) {
      Case c = small_case(dtype);
      c.heads_q = c.heads_kv = 1;
      c.query = Lengths::fixed(1, 20);
      c.key = Lengths::fixed(1, 300);
      c.bias = BiasShape{false, false, false, true};
      verify(c, Passes::forward_and_backward, again, [&](Tensors& t) { t.bias.set(winner, 500); });
    }
  }
}

}  // namespace
}  // namespace flash3::test
