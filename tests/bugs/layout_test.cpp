// Strides: classes 7 and 28.
#include <algorithm>

#include "bugs/bugs.h"

namespace flash3::test {
namespace {

TEST(BugClass, Number07NoStrideIsAssumed) {
  const std::int64_t seeds = std::max<std::int64_t>(5, cases(40));  // 5: each of the layouts below
  for (DType dtype : engine_dtypes) {
    for (std::uint64_t seed = 0; seed < static_cast<std::uint64_t>(seeds); ++seed) {
      Case c = small_case(dtype);
      c.seed = seed;
      c.plain_layouts = false;
      c.heads_kv = seed % 3 == 0 ? 4 : 2;
      c.head_dim_v = seed % 2 == 0 ? 32 : 17;
      if (seed % 5 == 0) c.key = c.query;  // so that one packed projection can hold all three
      if (seed % 4 == 1) c.query = Lengths::variable({70, 33}), c.key = Lengths::variable({70, 50});
      if (seed % 4 == 2) c.bias = BiasShape{true, true, true, true};
      c.d_lse = seed % 2 == 1;
      verify(c, Passes::forward_and_backward, again);
    }
  }
}

// Gives each dimension of size 1 a stride that nothing may be computed from.
template <class View>
void spoil_strides(View& view, std::int64_t stride) {
  for (int d = 0; d < view.rank; ++d) {
    if (view.shape[static_cast<std::size_t>(d)] == 1) view.strides[static_cast<std::size_t>(d)] = stride;
  }
}

TEST(BugClass, Number28DimensionsOfSizeOneMayHaveAnyStride) {
  struct Shape {
    std::int64_t batch, seqlen_q, seqlen_kv, heads_q, heads_kv, head_dim, head_dim_v;
  };
  for (DType dtype : engine_dtypes) {
    for (const Shape& shape : {Shape{1, 1, 1, 1, 1, 1, 1}, Shape{1, 5, 7, 3, 1, 8, 8}, Shape{3, 1, 9, 1, 1, 16, 1},
                               Shape{1, 33, 1, 4, 2, 1, 16}}) {
      Case c = small_case(dtype);
      c.heads_q = shape.heads_q;
      c.heads_kv = shape.heads_kv;
      c.head_dim = shape.head_dim;
      c.head_dim_v = shape.head_dim_v;
      c.query = Lengths::fixed(shape.batch, shape.seqlen_q);
      c.key = Lengths::fixed(shape.batch, shape.seqlen_kv);
      c.sinks = true;
      c.bias = BiasShape{true, true, true, true};
      c.d_lse = true;
      verify(c, Passes::forward_and_backward, again);
      for (const TestedEngine& engine : engines_present()) {
        const auto plain = run(engine, c, Passes::forward_and_backward);
        if (!plain) continue;
        for (std::int64_t stride : {std::int64_t{0}, std::int64_t{3}, std::int64_t{-7}, std::int64_t{1} << 40}) {
          Tensors t(c);
          const InUse in_use(engine);
          const Execution execution{engine.engine, 0};
          Stay stay(engine.memory);
          ForwardArgs f = forward_args(c, t, stay);
          for (ConstTensorView* view : {&f.query, &f.key, &f.value, &*f.sinks, &*f.bias}) spoil_strides(*view, stride);
          for (TensorView* view : {&f.out, &*f.lse}) spoil_strides(*view, stride);
          forward(f, execution);
          BackwardArgs b = backward_args(c, t, stay);
          for (ConstTensorView* view :
               {&b.query, &b.key, &b.value, &*b.sinks, &*b.bias, &b.out, &b.lse, &b.d_out, &*b.d_lse}) {
            spoil_strides(*view, stride);
          }
          for (TensorView* view : {&b.d_query, &b.d_key, &b.d_value, &*b.d_sinks, &*b.d_bias}) {
            spoil_strides(*view, stride);
          }
          backward(b, execution);
          stay.fetch();
          EXPECT_EQ(different_bits(*plain, t), "")
              << name_of(engine.engine) << " stride " << stride << " " << c.to_string();
        }
      }
    }
  }
}

}  // namespace
}  // namespace flash3::test
