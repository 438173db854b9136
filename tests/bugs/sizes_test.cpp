// Sizes: beyond 32 bits, zero, many, around tiles: classes 8, 10, 12, 14, 22 and 29.
#include <sys/mman.h>

#include <cmath>
#include <limits>

#include "bugs/bugs.h"

namespace flash3::test {
namespace {

// Address space that takes memory only where it is touched.
class SparseRegion {
 public:
  explicit SparseRegion(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~SparseRegion() {
    if (*this) munmap(data_, bytes_);
  }
  SparseRegion(const SparseRegion&) = delete;
  SparseRegion& operator=(const SparseRegion&) = delete;

  explicit operator bool() const { return data_ != MAP_FAILED; }
  void* data() const { return data_; }

 private:
  std::size_t bytes_;
  void* data_;
};

// Spreads a dense (batch, seqlen, heads, dim) tensor over a region, so that one of its strides is far beyond 2^31.
TensorView spread(const Tensor& dense, const SparseRegion& region, int dimension, std::int64_t stride) {
  TensorView view = dense.view();
  view.data = region.data();
  view.strides[static_cast<std::size_t>(dimension)] = stride;
  return view;
}

void copy(const TensorView& from, const TensorView& to) {
  const auto bytes = static_cast<std::int64_t>(size_of(from.dtype));
  for (std::int64_t b = 0; b < from.shape[0]; ++b) {
    for (std::int64_t i = 0; i < from.shape[1]; ++i) {
      for (std::int64_t head = 0; head < from.shape[2]; ++head) {
        const auto at = [&](const TensorView& t) {
          return static_cast<std::byte*>(t.data) + bytes * (b * t.strides[0] + i * t.strides[1] + head * t.strides[2]);
        };
        std::copy_n(at(from), bytes * from.shape[3], at(to));
      }
    }
  }
}

TEST(BugClass, Number08OffsetsBeyond32Bits) {
  constexpr std::int64_t stride = (std::int64_t{1} << 31) + 64;  // elements
  for (DType dtype : {DType::float32, DType::bfloat16}) {
    const auto bytes = static_cast<std::int64_t>(size_of(dtype));
    for (int dimension : {0, 1, 2}) {
      Case c = small_case(dtype);
      c.query = Lengths::fixed(dimension == 0 ? 3 : 1, 3);
      c.key = Lengths::fixed(dimension == 0 ? 3 : 1, 3);
      c.heads_q = c.heads_kv = dimension == 2 ? 3 : 1;
      for (const TestedEngine& engine : engines_present()) {
        if (engine.memory != nullptr) continue;  // sparse memory is the host's
        const auto dense = run(engine, c, Passes::forward_and_backward);
        if (!dense) continue;
        Tensors t(c);
        Stay stay(nullptr);
        ForwardArgs f = forward_args(c, t, stay);
        BackwardArgs b = backward_args(c, t, stay);
        std::vector<std::unique_ptr<SparseRegion>> regions;
        bool mapped = true;
        const auto far = [&](const Tensor& tensor, bool input) {
          regions.push_back(std::make_unique<SparseRegion>(bytes * (2 * stride + 4096)));
          mapped = mapped && *regions.back();
          const TensorView view = spread(tensor, *regions.back(), dimension, stride);
          if (mapped && input) copy(tensor.view(), view);
          return view;
        };
        const TensorView out = far(t.out, false);
        const TensorView d_query = far(t.d_query, false), d_key = far(t.d_key, false), d_value = far(t.d_value, false);
        f.query = b.query = far(t.query, true);
        f.key = b.key = far(t.key, true);
        f.value = b.value = far(t.value, true);
        b.d_out = far(t.d_out, true);
        f.out = out;
        b.out = out;
        b.d_query = d_query, b.d_key = d_key, b.d_value = d_value;
        if (!mapped) GTEST_SKIP() << "no address space for sparse tensors (a sanitizer, or a limit of the machine)";
        const InUse in_use(engine);
        forward(f, {engine.engine, 2});
        backward(b, {engine.engine, 2});
        copy(out, t.out.view());
        copy(d_query, t.d_query.view());
        copy(d_key, t.d_key.view());
        copy(d_value, t.d_value.view());
        EXPECT_EQ(different_bits(*dense, t), "") << name_of(engine.engine) << " dimension " << dimension;
      }
    }
  }
}

TEST(BugClass, Number08MoreSequencesTimesHeadsThan65535) {
  for (bool many_heads : {false, true}) {
    Case c = small_case(DType::float32);
    c.head_dim = c.head_dim_v = 2;
    c.heads_q = c.heads_kv = many_heads ? 66000 : 3;
    c.query = Lengths::fixed(many_heads ? 1 : 22000, 1);
    c.key = Lengths::fixed(many_heads ? 1 : 22000, 2);
    c.options.causal = true;
    verify(c, Passes::forward_and_backward, again);
  }
}

TEST(BugClass, Number08AMillionKeysAndAMillionQueries) {
  Case c = small_case(DType::float32);
  c.heads_q = c.heads_kv = 1;
  c.head_dim = c.head_dim_v = 2;
  c.query = Lengths::fixed(1, 1);
  c.key = Lengths::fixed(1, (1 << 20) + 3);
  verify(c, Passes::forward_and_backward, again);
  c.query = Lengths::fixed(1, (1 << 20) + 3);
  c.key = Lengths::fixed(1, 1);
  c.options.window_left = 5;  // all but the last rows see nothing (top left) or everything is far away (bottom right)
  c.options.alignment = MaskAlignment::top_left;
  verify(c, Passes::forward_and_backward, again);
}

TEST(BugClass, Number10EveryMixOfZeroAndNonzeroLengths) {
  const std::initializer_list<std::int64_t> lengths{0, 1, 17, 130};
  std::vector<std::int64_t> queries, keys;
  for (std::int64_t q : lengths) {
    for (std::int64_t k : lengths) queries.push_back(q), keys.push_back(k);
  }
  for (DType dtype : engine_dtypes) {
    for (bool extras : {false, true}) {
      Case c = small_case(dtype);
      c.sinks = c.d_lse = extras;
      if (extras) c.bias = BiasShape{true, true, true, false};
      c.query = Lengths::variable(queries);
      c.key = Lengths::variable(keys);
      verify(c, Passes::forward_and_backward, again);
      // The same, by seqused in a batch that has room for all.
      c.query = Lengths::fixed(static_cast<std::int64_t>(queries.size()), 130);
      c.query.used = queries;
      c.key = Lengths::fixed(static_cast<std::int64_t>(keys.size()), 130);
      c.key.used = keys;
      c.options.causal = true;
      verify(c, Passes::forward_and_backward, again);
      for (std::int64_t q : {0, 3}) {
        for (std::int64_t k : {0, 3}) {
          c.query = Lengths::fixed(2, q);
          c.key = Lengths::fixed(2, k);
          verify(c, Passes::forward_and_backward, again);
        }
      }
    }
  }
}

TEST(BugClass, Number10EmptyTensorsMayHaveNullData) {
  Case c = small_case(DType::bfloat16);
  c.key = Lengths::fixed(2, 0);
  for (const TestedEngine& engine : engines_present()) {
    Tensors t(c);
    const InUse in_use(engine);
    Stay stay(engine.memory);
    ForwardArgs f = forward_args(c, t, stay);
    f.key.data = f.value.data = nullptr;
    BackwardArgs b = backward_args(c, t, stay);
    b.key.data = b.value.data = nullptr;
    b.d_key.data = b.d_value.data = nullptr;
    try {
      forward(f, {engine.engine, 0});
      backward(b, {engine.engine, 0});
    } catch (const Unsupported&) {
      EXPECT_TRUE(engine.partial);
      continue;
    }
    stay.fetch();
    for (double x : t.out.values()) EXPECT_EQ(x, 0);
    for (double x : t.lse.values()) EXPECT_EQ(x, -std::numeric_limits<double>::infinity());
    for (double x : t.d_query.values()) EXPECT_EQ(x, 0);
  }
}

TEST(BugClass, Number12ValueHeadDimsOfTheirOwn) {
  for (DType dtype : engine_dtypes) {
    for (std::int64_t head_dim : {16, 80, 256}) {
      for (std::int64_t head_dim_v : {16, 80, 256}) {
        Case c = small_case(dtype);
        c.plain_layouts = false;
        c.head_dim = head_dim;
        c.head_dim_v = head_dim_v;
        c.query = Lengths::variable({20, 0, 41});
        c.key = Lengths::variable({31, 5, 70});
        c.bias = BiasShape{false, true, true, true};
        verify(c, Passes::forward_and_backward, again);
      }
    }
  }
}

TEST(BugClass, Number14BatchesOfEverySize) {
  for (DType dtype : {DType::float32, DType::bfloat16}) {
    for (std::int64_t batch : {1, 2, 31, 32, 33, 63, 65, 127, 129, 255, 257, 1000, 2000}) {
      Random random(static_cast<std::uint64_t>(batch));
      std::vector<std::int64_t> queries, keys;
      for (std::int64_t b = 0; b < batch; ++b) {
        queries.push_back(random.chance(0.02) ? 70 : random.between(0, 4));
        keys.push_back(random.chance(0.02) ? 70 : random.between(0, 4));
      }
      Case c = small_case(dtype);
      c.head_dim = c.head_dim_v = 8;
      c.query = Lengths::variable(queries);
      c.key = Lengths::variable(keys);
      c.options.causal = true;
      verify(c, Passes::forward_and_backward, again);
    }
  }
}

TEST(BugClass, Number22LengthsAroundTilesInOneBatch) {
  for (DType dtype : engine_dtypes) {
    for (std::int64_t tile : {16, 32, 48, 64, 128}) {
      std::vector<std::int64_t> queries, keys;
      for (std::int64_t k = 1; k <= 3; ++k) {
        for (std::int64_t off : {-1, 0, 1}) queries.push_back(k * tile + off), keys.push_back((4 - k) * tile - off);
      }
      Case c = small_case(dtype);
      c.head_dim = c.head_dim_v = 8;
      c.heads_q = 2;
      c.query = Lengths::variable(queries);
      c.key = Lengths::variable(keys);
      c.options.window_left = tile;
      verify(c, Passes::forward_and_backward, again);
    }
  }
}

TEST(BugClass, Number29EverythingEmpty) {
  for (DType dtype : engine_dtypes) {
    for (const auto& [queries, keys] :
         {std::pair{Lengths::fixed(0, 5), Lengths::fixed(0, 5)}, std::pair{Lengths::fixed(2, 0), Lengths::fixed(2, 0)},
          std::pair{Lengths::variable({}), Lengths::variable({})},
          std::pair{Lengths::variable({0, 0, 0}), Lengths::variable({0, 0, 0})}}) {
      Case c = small_case(dtype);
      c.query = queries;
      c.key = keys;
      c.sinks = c.d_lse = true;
      c.bias = BiasShape{true, true, true, true};
      verify(c, Passes::forward_and_backward, again);
    }
  }
}

}  // namespace
}  // namespace flash3::test
