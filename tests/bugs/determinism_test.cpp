// The same inputs give the same bits: over repeats, thread counts, the batch around, and callers at the same time.
#include <atomic>
#include <thread>

#include "bugs/bugs.h"

namespace flash3::test {
namespace {

// A batch of mixed lengths, long enough to be shared out among threads.
Case shared_case(DType dtype) {
  Case c = small_case(dtype);
  c.heads_q = 6;
  c.heads_kv = 2;
  c.query = Lengths::variable({180, 1, 0, 129, 64});
  c.key = Lengths::variable({180, 257, 5, 0, 65});
  c.options.causal = true;
  c.sinks = c.d_lse = true;
  c.bias = BiasShape{false, true, true, true};
  return c;
}

TEST(Determinism, BitsDoNotDependOnThreadsOrRepetition) {
  for (const TestedEngine& engine : engines_present()) {
    for (DType dtype : engine_dtypes) {
      for (bool bias : {false, true}) {
        Case c = shared_case(dtype);
        if (!bias) c.bias.reset();
        c.num_threads = 1;
        const auto first = run(engine, c, Passes::forward_and_backward);
        if (!first) continue;
        for (int threads : {1, 2, 3, 4, 5, 0}) {
          c.num_threads = threads;
          for (std::int64_t repeat = engine.engine == Engine::reference ? 1 : cases(4); repeat > 0; --repeat) {
            const auto t = run(engine, c, Passes::forward_and_backward);
            ASSERT_EQ(different_bits(*first, *t), "") << name_of(engine.engine) << ": " << c.to_string();
          }
        }
      }
    }
  }
}

TEST(Determinism, ASequencesBitsDoNotDependOnTheBatchAroundIt) {
  for (const TestedEngine& engine : engines_present()) {
    for (DType dtype : engine_dtypes) {
      Case batch = shared_case(dtype);
      batch.bias.reset();
      const auto together = run(engine, batch, Passes::forward);
      if (!together) continue;
      for (std::int64_t b = 0; b < batch.batch(); ++b) {
        Case alone = batch;
        alone.query = Lengths::fixed(1, batch.query.of(b));
        alone.key = Lengths::fixed(1, batch.key.of(b));
        const auto t = run(engine, alone, Passes::forward, [&](Tensors& x) {
          const auto take = [&](Tensor& to, const Tensor& from, std::int64_t first) {
            for (std::int64_t n = 0; n < to.numel(); ++n) {
              if (from.is_poison(first + n)) {
                to.set_poison(n);
              } else {
                to.set(n, from.get(first + n));
              }
            }
          };
          take(x.query, together->query, batch.query_element(b, 0, 0, batch.head_dim));
          take(x.key, together->key, batch.key_element(b, 0, 0, batch.head_dim));
          take(x.value, together->value, batch.key_element(b, 0, 0, batch.head_dim_v));
          take(x.sinks, together->sinks, 0);
        });
        for (std::int64_t i = 0; i < batch.query.of(b); ++i) {
          for (std::int64_t head = 0; head < batch.heads_q; ++head) {
            ASSERT_EQ(t->lse.get(alone.row_element(0, i, head)), together->lse.get(batch.row_element(b, i, head)))
                << name_of(engine.engine) << " " << name_of(dtype) << " sequence " << b << " row " << i;
            for (std::int64_t d = 0; d < batch.head_dim_v; ++d) {
              ASSERT_EQ(t->out.get(alone.query_element(0, i, head, batch.head_dim_v) + d),
                        together->out.get(batch.query_element(b, i, head, batch.head_dim_v) + d))
                  << name_of(engine.engine) << " " << name_of(dtype) << " sequence " << b << " row " << i;
            }
          }
        }
      }
    }
  }
}

TEST(Determinism, ARowsBitsDoNotDependOnOtherQueries) {
  for (const TestedEngine& engine : engines_present()) {
    for (DType dtype : engine_dtypes) {
      Case c;
      c.dtype = dtype;
      c.heads_q = c.heads_kv = 1;
      c.query = c.key = Lengths::fixed(1, 200);
      const auto plain = run(engine, c, Passes::forward);
      if (!plain) continue;
      // Every fifth query gets scores that are much greater, at keys of their own.
      const auto other = [](std::int64_t row) { return row % 5 == 0; };
      const auto changed = run(engine, c, Passes::forward, [&](Tensors& t) {
        for (std::int64_t row = 0; row < 200; ++row) {
          for (std::int64_t d = 0; d < c.head_dim && other(row); ++d) {
            const std::int64_t n = c.query_element(0, row, 0, c.head_dim) + d;
            t.query.set(n, 40 * t.query.get(n));
          }
        }
      });
      for (std::int64_t row = 0; row < 200; ++row) {
        if (other(row)) continue;
        ASSERT_EQ(plain->lse.get(c.row_element(0, row, 0)), changed->lse.get(c.row_element(0, row, 0)));
        for (std::int64_t d = 0; d < c.head_dim_v; ++d) {
          const std::int64_t n = c.query_element(0, row, 0, c.head_dim_v) + d;
          ASSERT_EQ(plain->out.get(n), changed->out.get(n))
              << name_of(engine.engine) << " " << name_of(dtype) << " row " << row;
        }
      }
    }
  }
}

TEST(Determinism, SixteenCallersAtOnce) {
  for (const TestedEngine& engine : engines_present()) {
    const InUse in_use(engine);
    std::vector<Case> problems;
    std::vector<Tensors> wanted;
    for (int n = 0; n < 16; ++n) {
      Case c = shared_case(*(engine_dtypes.begin() + n % 3));
      c.seed = static_cast<std::uint64_t>(n);
      c.head_dim = c.head_dim_v = 16 * (1 + n % 4);
      c.num_threads = n % 4;
      problems.push_back(c);
      if (auto t = run(engine, c, Passes::forward_and_backward)) wanted.push_back(std::move(*t));
    }
    if (wanted.empty()) continue;
    std::vector<Tensors> tensors;
    for (const Case& c : problems) tensors.emplace_back(c);
    std::atomic<int> failures{0};
    const std::int64_t repeats = cases(3);
    {
      std::vector<std::jthread> callers;
      for (std::size_t n = 0; n < problems.size(); ++n) {
        callers.emplace_back([&, n] {
          try {
            const Execution execution{engine.engine, problems[n].num_threads};
            Stay stay(engine.memory);
            for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
              forward(forward_args(problems[n], tensors[n], stay), execution);
              backward(backward_args(problems[n], tensors[n], stay), execution);
            }
            stay.fetch();
          } catch (const std::exception&) {
            ++failures;
          }
        });
      }
    }
    EXPECT_EQ(failures, 0) << name_of(engine.engine);
    for (std::size_t n = 0; n < problems.size(); ++n) {
      EXPECT_EQ(different_bits(wanted[n], tensors[n]), "") << name_of(engine.engine) << ": " << problems[n].to_string();
    }
  }
}

}  // namespace
}  // namespace flash3::test
