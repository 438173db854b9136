// Parts merge into the whole, forward and backward, whatever the split; empty parts, NaN, layouts, refusals.
#include "flash3/merge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/environment.h"
#include "support/tensor.h"

namespace flash3::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr Execution reference_engine{Engine::reference, 1};

void fill(Tensor& t, Random& random) {
  for (std::int64_t n = 0; n < t.numel(); ++n) t.set(n, random.normal());
}

// One part of a tensor of parts.
TensorView part_of(const Tensor& parts, std::int64_t part) {
  const TensorView& all = parts.view();
  const auto rank = static_cast<std::size_t>(all.rank);
  return make_view(
      static_cast<std::byte*>(all.data) + part * all.strides[0] * static_cast<std::int64_t>(size_of(all.dtype)),
      all.dtype, {all.shape.data() + 1, rank - 1}, {all.strides.data() + 1, rank - 1});
}

// Keys begin ... end - 1 of a (batch, seqlen, heads, dim) tensor.
TensorView keys_of(const Tensor& t, std::int64_t begin, std::int64_t end) {
  TensorView view = t.view();
  view.data =
      static_cast<std::byte*>(view.data) + begin * view.strides[1] * static_cast<std::int64_t>(size_of(view.dtype));
  view.shape[1] = end - begin;
  return view;
}

// Attention over all keys, and the same over a random split of them, some parts empty. All in float64.
struct Split {
  std::int64_t batch = 2, seqlen_q = 5, seqlen_kv = 23, heads_q = 4, heads_kv = 2, dim = 6, dim_v = 5;
  std::vector<std::int64_t> bounds;  // parts + 1
  Tensor query, key, value, d_out, d_lse;
  Tensor out, lse, d_query, d_key, d_value;  // of the whole
  Tensor parts_out, parts_lse;

  std::int64_t parts() const { return static_cast<std::int64_t>(bounds.size()) - 1; }

  Split(Random& random, std::int64_t part_count) {
    const auto make = [](std::vector<std::int64_t> shape) { return Tensor(DType::float64, std::move(shape)); };
    query = make({batch, seqlen_q, heads_q, dim}), d_query = make({batch, seqlen_q, heads_q, dim});
    key = make({batch, seqlen_kv, heads_kv, dim}), d_key = make({batch, seqlen_kv, heads_kv, dim});
    value = make({batch, seqlen_kv, heads_kv, dim_v}), d_value = make({batch, seqlen_kv, heads_kv, dim_v});
    out = make({batch, seqlen_q, heads_q, dim_v}), d_out = make({batch, seqlen_q, heads_q, dim_v});
    lse = make({batch, heads_q, seqlen_q}), d_lse = make({batch, heads_q, seqlen_q});
    for (Tensor* t : {&query, &key, &value, &d_out, &d_lse}) fill(*t, random);
    for (std::int64_t n = 0; n < query.numel(); ++n) query.set(n, 4 * query.get(n));  // parts of very different weight

    bounds = {0, seqlen_kv};
    while (parts() < part_count) {
      bounds.push_back(random.chance(0.3) ? bounds[bounds.size() / 2] : random.between(0, seqlen_kv));
    }
    std::sort(bounds.begin(), bounds.end());

    forward(whole_forward(), reference_engine);
    backward(whole_backward(), reference_engine);
    parts_out = make({parts(), batch, seqlen_q, heads_q, dim_v});
    parts_lse = make({parts(), batch, heads_q, seqlen_q});
    for (std::int64_t p = 0; p < parts(); ++p) {
      ForwardArgs args = whole_forward();
      args.key = keys_of(key, bounds[at(p)], bounds[at(p + 1)]);
      args.value = keys_of(value, bounds[at(p)], bounds[at(p + 1)]);
      args.out = part_of(parts_out, p);
      args.lse = part_of(parts_lse, p);
      forward(args, reference_engine);
    }
  }

  static std::size_t at(std::int64_t n) { return static_cast<std::size_t>(n); }

  ForwardArgs whole_forward() const {
    ForwardArgs args;
    args.query = query.view(), args.key = key.view(), args.value = value.view();
    args.out = out.view(), args.lse = lse.view();
    return args;
  }

  BackwardArgs whole_backward() const {
    BackwardArgs args;
    args.query = query.view(), args.key = key.view(), args.value = value.view();
    args.out = out.view(), args.lse = lse.view();
    args.d_out = d_out.view(), args.d_lse = d_lse.view();
    args.d_query = d_query.view(), args.d_key = d_key.view(), args.d_value = d_value.view();
    return args;
  }
};

void expect_near(const Tensor& a, const Tensor& b, double tolerance, const char* name) {
  for (std::int64_t n = 0; n < a.numel(); ++n) {
    if (a.get(n) == b.get(n)) continue;
    ASSERT_NEAR(a.get(n), b.get(n), tolerance * std::max(1.0, std::abs(b.get(n)))) << name << " element " << n;
  }
}

TEST(Merge, PartsMakeTheWhole) {
  Random random(1);
  for (std::int64_t parts = 1; parts <= 9; ++parts) {
    for (int repeat = 0; repeat < 5; ++repeat) {
      const Split split(random, parts);
      const Tensor out(DType::float64, split.out.shape()), lse(DType::float64, split.lse.shape());
      merge({split.parts_out.view(), split.parts_lse.view(), out.view(), lse.view()});
      expect_near(out, split.out, 1e-13, "out");
      expect_near(lse, split.lse, 1e-13, "lse");
    }
  }
}

// Training through a merge: its gradients, given to each part's backward pass, make the gradients of the whole.
TEST(Merge, GradientsOfPartsMakeThoseOfTheWhole) {
  Random random(2);
  for (std::int64_t parts = 1; parts <= 7; ++parts) {
    const Split split(random, parts);
    const Tensor d_parts_out(DType::float64, split.parts_out.shape());
    const Tensor d_parts_lse(DType::float64, split.parts_lse.shape());
    merge_backward({split.parts_out.view(), split.parts_lse.view(), split.d_out.view(), split.d_lse.view(),
                    d_parts_out.view(), d_parts_lse.view()});
    Tensor d_query(DType::float64, split.query.shape());
    for (std::int64_t n = 0; n < d_query.numel(); ++n) d_query.set(n, 0);
    const Tensor d_key(DType::float64, split.key.shape()), d_value(DType::float64, split.value.shape());
    for (std::int64_t p = 0; p < parts; ++p) {
      const std::int64_t begin = split.bounds[Split::at(p)], end = split.bounds[Split::at(p + 1)];
      const Tensor d_query_of_part(DType::float64, split.query.shape());
      BackwardArgs args = split.whole_backward();
      args.key = keys_of(split.key, begin, end);
      args.value = keys_of(split.value, begin, end);
      args.out = part_of(split.parts_out, p);
      args.lse = part_of(split.parts_lse, p);
      args.d_out = part_of(d_parts_out, p);
      args.d_lse = part_of(d_parts_lse, p);
      args.d_query = d_query_of_part.view();
      args.d_key = keys_of(d_key, begin, end);
      args.d_value = keys_of(d_value, begin, end);
      backward(args, reference_engine);
      for (std::int64_t n = 0; n < d_query.numel(); ++n) d_query.set(n, d_query.get(n) + d_query_of_part.get(n));
    }
    expect_near(d_query, split.d_query, 1e-12, "d_query");
    expect_near(d_key, split.d_key, 1e-12, "d_key");
    expect_near(d_value, split.d_value, 1e-12, "d_value");
  }
}

// A merge of random parts in any dtypes and layouts, some parts of some rows empty.
struct Merge {
  DType dtype, part_dtype;
  bool varlen;
  Tensor parts_out, parts_lse, out, lse, d_out, d_lse, d_parts_out, d_parts_lse;

  Merge(Random& random, DType dtype_, DType part_dtype_, bool varlen_, bool plain)
      : dtype(dtype_), part_dtype(part_dtype_), varlen(varlen_) {
    const std::int64_t parts = random.between(1, 6), batch = random.between(1, 3), seqlen = random.between(1, 9),
                       heads = random.between(1, 4), dim = random.between(1, 40);
    const DType rows = dtype == DType::float64 ? DType::float64 : DType::float32;
    const auto make = [&](DType type, std::vector<std::int64_t> shape, bool of_parts, bool input) {
      if (of_parts) shape.insert(shape.begin(), parts);
      const auto rank = static_cast<int>(shape.size());
      return Tensor(type, std::move(shape), plain ? Layout{} : random_layout(random, rank, input));
    };
    const std::vector<std::int64_t> out_shape =
        varlen ? std::vector{seqlen, heads, dim} : std::vector{batch, seqlen, heads, dim};
    const std::vector<std::int64_t> lse_shape = varlen ? std::vector{heads, seqlen} : std::vector{batch, heads, seqlen};
    parts_out = make(part_dtype, out_shape, true, true), parts_lse = make(rows, lse_shape, true, true);
    out = make(dtype, out_shape, false, false), lse = make(rows, lse_shape, false, false);
    d_out = make(dtype, out_shape, false, true), d_lse = make(rows, lse_shape, false, true);
    d_parts_out = make(part_dtype, out_shape, true, false), d_parts_lse = make(rows, lse_shape, true, false);
    for (Tensor* t : {&parts_out, &parts_lse, &d_out, &d_lse}) fill(*t, random);
    for (std::int64_t n = 0; n < parts_lse.numel(); ++n) {
      if (random.chance(0.3)) parts_lse.set(n, -infinity);
    }
  }

  MergeArgs forward_args() const { return {parts_out.view(), parts_lse.view(), out.view(), lse.view()}; }
  MergeBackwardArgs backward_args() const {
    return {parts_out.view(), parts_lse.view(), d_out.view(), d_lse.view(), d_parts_out.view(), d_parts_lse.view()};
  }

  std::int64_t parts() const { return parts_out.shape()[0]; }
  // Elements of one part's out, and of one part's lse.
  std::int64_t out_size() const { return out.numel(); }
  std::int64_t lse_size() const { return lse.numel(); }
  // The lse element of the row that out element n is in.
  std::int64_t row_of(std::int64_t n) const {
    const auto& shape = out.shape();
    const std::size_t rank = shape.size();
    const std::int64_t dim = shape[rank - 1], heads = shape[rank - 2], seqlen = shape[rank - 3];
    const std::int64_t head = n / dim % heads, row = n / dim / heads % seqlen, batch = n / dim / heads / seqlen;
    return (batch * heads + head) * seqlen + row;
  }
  bool is_empty(std::int64_t part, std::int64_t row) const {
    return parts_lse.get(part * lse_size() + row) == -infinity;
  }

  double wanted_lse(std::int64_t row) const {
    double sum = 0;
    for (std::int64_t p = 0; p < parts(); ++p) sum += std::exp(parts_lse.get(p * lse_size() + row));
    return std::log(sum);
  }
  double weight(std::int64_t part, std::int64_t row) const {
    return is_empty(part, row) ? 0 : std::exp(parts_lse.get(part * lse_size() + row) - wanted_lse(row));
  }
  double wanted_out(std::int64_t n) const {
    double sum = 0;
    for (std::int64_t p = 0; p < parts(); ++p) {
      if (!is_empty(p, row_of(n))) sum += weight(p, row_of(n)) * parts_out.get(p * out_size() + n);
    }
    return sum;
  }
};

// Every element of an output is near what is wanted, and no other byte of its buffer has changed from poison.
template <class Wanted>
void expect_output(const Tensor& t, double tolerance, const char* name, const Wanted& wanted) {
  for (std::int64_t n = 0; n < t.numel(); ++n) {
    const double w = wanted(n);
    if (t.get(n) == w || (std::isnan(w) && std::isnan(t.get(n)) && !t.is_poison(n))) continue;
    ASSERT_NEAR(t.get(n), w, tolerance * std::max(1.0, std::abs(w))) << name << " element " << n;
  }
  std::vector<std::byte> image = t.image();
  const std::vector<std::byte> untouched(image.size(), poison);
  t.excuse(image, untouched, std::vector<bool>(static_cast<std::size_t>(t.numel()), true));
  EXPECT_EQ(image, untouched) << name << " was written beyond its elements";
}

void expect_right(const Merge& m) {
  const double tolerance = m.dtype == DType::float64 ? 1e-13 : 1e-6;
  const double out_tolerance = std::max(tolerance, ulp_of(m.dtype)),
               part_tolerance = std::max(tolerance, ulp_of(m.part_dtype));
  merge(m.forward_args());
  expect_output(m.lse, tolerance, "lse", [&](std::int64_t n) { return m.wanted_lse(n); });
  expect_output(m.out, out_tolerance, "out", [&](std::int64_t n) { return m.wanted_out(n); });

  merge_backward(m.backward_args());
  expect_output(m.d_parts_out, part_tolerance, "d_parts_out", [&](std::int64_t n) {
    const std::int64_t part = n / m.out_size(), element = n % m.out_size();
    return m.is_empty(part, m.row_of(element)) ? 0 : m.weight(part, m.row_of(element)) * m.d_out.get(element);
  });
  std::vector<double> d_parts_lse(static_cast<std::size_t>(m.parts_lse.numel()));
  for (std::int64_t p = 0; p < m.parts(); ++p) {
    for (std::int64_t row = 0; row < m.lse_size(); ++row) {
      const auto n = static_cast<std::size_t>(p * m.lse_size() + row);
      if (!m.is_empty(p, row)) d_parts_lse[n] = m.weight(p, row) * m.d_lse.get(row);
    }
    for (std::int64_t n = 0; n < m.out_size(); ++n) {
      const std::int64_t row = m.row_of(n);
      if (m.is_empty(p, row)) continue;
      d_parts_lse[static_cast<std::size_t>(p * m.lse_size() + row)] +=
          m.weight(p, row) * m.d_out.get(n) * (m.parts_out.get(p * m.out_size() + n) - m.wanted_out(n));
    }
  }
  expect_output(m.d_parts_lse, 20 * tolerance, "d_parts_lse",
                [&](std::int64_t n) { return d_parts_lse[static_cast<std::size_t>(n)]; });
}

TEST(Merge, EveryDtypeAndLayout) {
  struct Dtypes {
    DType out, part;
  };
  for (const Dtypes& d : {Dtypes{DType::float64, DType::float64}, Dtypes{DType::float32, DType::float32},
                          Dtypes{DType::float16, DType::float16}, Dtypes{DType::float16, DType::float32},
                          Dtypes{DType::bfloat16, DType::bfloat16}, Dtypes{DType::bfloat16, DType::float32}}) {
    for (std::int64_t n = 0; n < cases(60); ++n) {
      Random random(case_seed(n));
      SCOPED_TRACE(command_for(case_seed(n)));
      expect_right(Merge(random, d.out, d.part, n % 2 == 0, n % 3 == 0));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Merge, EmptyPartsAreNotRead) {
  Random random(3);
  for (int repeat = 0; repeat < 20; ++repeat) {
    Merge m(random, DType::float32, DType::float32, false, true);
    for (std::int64_t n = 0; n < m.parts_out.numel(); ++n) {
      if (m.is_empty(n / m.out_size(), m.row_of(n % m.out_size()))) m.parts_out.set(n, nan);
    }
    expect_right(m);
  }
}

TEST(Merge, AllEmptyIsEmpty) {
  Random random(4);
  Merge m(random, DType::bfloat16, DType::float32, false, true);
  for (std::int64_t n = 0; n < m.parts_lse.numel(); ++n) m.parts_lse.set(n, -infinity);
  merge(m.forward_args());
  merge_backward(m.backward_args());
  for (double x : m.out.values()) EXPECT_EQ(x, 0);
  for (double x : m.lse.values()) EXPECT_EQ(x, -infinity);
  for (double x : m.d_parts_out.values()) EXPECT_EQ(x, 0);
  for (double x : m.d_parts_lse.values()) EXPECT_EQ(x, 0);
}

TEST(BugClass, Number31NanInOnePartReachesTheOutput) {
  for (bool in_lse : {false, true}) {
    Random random(5);
    Merge m(random, DType::float32, DType::float32, false, true);
    for (std::int64_t n = 0; n < m.parts_lse.numel(); ++n) m.parts_lse.set(n, n < m.lse_size() ? -200 : 0);
    (in_lse ? m.parts_lse : m.parts_out).set(0, nan);  // of part 0, whose weight is as good as 0
    merge(m.forward_args());
    for (std::int64_t n = 0; n < m.out.numel(); ++n) {
      EXPECT_EQ(std::isnan(m.out.get(n)), in_lse ? m.row_of(n) == 0 : n == 0) << n;
    }
    for (std::int64_t n = 0; n < m.lse.numel(); ++n) EXPECT_EQ(std::isnan(m.lse.get(n)), in_lse && n == 0);
  }
}

TEST(Merge, BitsDoNotDependOnThreads) {
  Random random(6);
  Tensor parts_out(DType::float32, {3, 2, 400, 5, 64}), parts_lse(DType::float32, {3, 2, 5, 400});
  fill(parts_out, random);
  fill(parts_lse, random);
  const Tensor out(DType::bfloat16, {2, 400, 5, 64}), again(DType::bfloat16, {2, 400, 5, 64});
  const Tensor d_out(DType::bfloat16, {2, 400, 5, 64});
  merge({parts_out.view(), parts_lse.view(), out.view(), {}}, {Engine::cpu, 1});
  for (int threads : {0, 2, 3, 7}) {
    merge({parts_out.view(), parts_lse.view(), again.view(), {}}, {Engine::automatic, threads});
    EXPECT_TRUE(out.same_bits(again)) << threads;
  }
}

TEST(Merge, BadArgumentsAreRefusedByName) {
  Random random(7);
  const Merge m(random, DType::float32, DType::float32, false, true);
  const auto refused = [&](const char* argument, auto spoil) {
    MergeArgs args = m.forward_args();
    spoil(args);
    try {
      merge(args);
      ADD_FAILURE() << "accepted a bad " << argument;
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.argument(), argument) << error.what();
    }
    for (std::int64_t n = 0; n < m.out.numel(); ++n) EXPECT_TRUE(m.out.is_poison(n));
    for (std::int64_t n = 0; n < m.lse.numel(); ++n) EXPECT_TRUE(m.lse.is_poison(n));
  };
  refused("parts_out", [](MergeArgs& a) { a.parts_out.rank = 3; });
  refused("parts_out", [](MergeArgs& a) { a.parts_out.data = nullptr; });
  refused("parts_out", [](MergeArgs& a) { a.parts_out.shape[0] = 0; });
  refused("parts_out", [](MergeArgs& a) { a.parts_out.shape[4] = 0; });
  refused("parts_out", [](MergeArgs& a) { a.parts_out.dtype = DType::float16; });
  refused("parts_lse", [](MergeArgs& a) { a.parts_lse.shape[0] += 1; });
  refused("parts_lse", [](MergeArgs& a) { a.parts_lse.device = {DeviceType::cuda, 1}; });
  refused("out", [](MergeArgs& a) { a.out.shape[1] += 1; });
  refused("out", [](MergeArgs& a) { a.out.dtype = DType::int32; });
  refused("out", [](MergeArgs& a) { a.out.data = const_cast<void*>(a.parts_out.data); });
  refused("lse", [](MergeArgs& a) { a.lse->dtype = DType::float64; });
  refused("lse", [](MergeArgs& a) { a.lse->strides[2] = 0, a.lse->shape[2] += 1; });
  MergeBackwardArgs gradients = m.backward_args();
  gradients.d_parts_lse.dtype = DType::float16;
  EXPECT_THROW(merge_backward(gradients), InvalidArgument);
  gradients = m.backward_args();
  gradients.d_parts_out.data = const_cast<void*>(gradients.d_out.data);
  EXPECT_THROW(merge_backward(gradients), InvalidArgument);
  EXPECT_THROW(merge(m.forward_args(), {Engine::automatic, -1}), InvalidArgument);
  EXPECT_THROW(merge(m.forward_args(), {Engine::cuda, 0}), Unsupported);
}

TEST(Merge, NothingToMerge) {
  const Tensor parts_out(DType::float32, {2, 0, 4, 3, 8}), parts_lse(DType::float32, {2, 0, 3, 4});
  const Tensor out(DType::float32, {0, 4, 3, 8});
  EXPECT_NO_THROW(merge({parts_out.view(), parts_lse.view(), out.view(), {}}));
}

}  // namespace
}  // namespace flash3::test
