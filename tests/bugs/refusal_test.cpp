// After any refusal nothing has been written, on any engine.
#include <functional>
#include <limits>

#include "bugs/bugs.h"

namespace flash3::test {
namespace {

constexpr std::int64_t far = std::numeric_limits<std::int64_t>::max() / 2;

struct Spoiler {
  std::string argument;  // that the error must name
  std::function<void(ForwardArgs&)> forward;
  std::function<void(BackwardArgs&)> backward;
};

// One spoiler for both argument structs.
template <class Spoil>
Spoiler both(std::string argument, Spoil spoil) {
  return {std::move(argument), spoil, spoil};
}

std::vector<Spoiler> spoilers() {
  return {
      both("query", [](auto& a) { a.query.data = nullptr; }),
      both("query", [](auto& a) { a.query.rank = 2; }),
      both("query", [](auto& a) { a.query.dtype = DType::int32; }),
      both("query", [](auto& a) { a.query.shape[3] = 257; }),
      both("query", [](auto& a) { a.query.strides[3] = 2; }),
      both("query", [](auto& a) { a.query.shape[1] = -1; }),
      both("query", [](auto& a) { a.query.strides[0] = far; }),
      both("key", [](auto& a) { a.key.shape[2] = 3; }),
      both("key", [](auto& a) { a.key.dtype = DType::float64; }),
      both("key", [](auto& a) { a.key.shape[3] = 16; }),
      both("value", [](auto& a) { a.value.shape[1] -= 1; }),
      both("value",
           [](auto& a) {
             a.value.device = {DeviceType::cuda, 0};
           }),
      both("softmax_scale", [](auto& a) { a.options.softmax_scale = std::numeric_limits<double>::quiet_NaN(); }),
      both("softmax_scale", [](auto& a) { a.options.softmax_scale = std::numeric_limits<double>::infinity(); }),
      both("softcap", [](auto& a) { a.options.softcap = -1; }),
      both("window_left", [](auto& a) { a.options.window_left = -1; }),
      both("window_right", [](auto& a) { a.options.window_right = -2; }),
      both("alignment", [](auto& a) { a.options.alignment = static_cast<MaskAlignment>(7); }),
      both("sinks", [](auto& a) { a.sinks->shape[0] = 1; }),
      both("bias", [](auto& a) { a.bias->shape[3] -= 1; }),
      both("bias", [](auto& a) { a.bias->dtype = DType::int32; }),
      both("seqused_k", [](auto& a) { a.seqused_k->shape[0] = 1; }),
      both("query", [](auto& a) { a.cu_seqlens_q = ConstTensorView(nullptr, DType::int32, {0}); }),
      {"out", [](ForwardArgs& a) { a.out.shape[1] -= 1; }, {}},
      {"out", [](ForwardArgs& a) { a.out.strides[0] = 0; }, {}},
      {"out", [](ForwardArgs& a) { a.out.data = const_cast<void*>(a.query.data); }, {}},
      {"lse", [](ForwardArgs& a) { a.lse->dtype = DType::float16; }, {}},
      {"lse", [](ForwardArgs& a) { a.lse->shape[2] += 1; }, {}},
      {"d_out", {}, [](BackwardArgs& a) { a.d_out.shape[3] = 1; }},
      {"d_lse", {}, [](BackwardArgs& a) { a.d_lse->dtype = DType::bfloat16; }},
      {"d_query", {}, [](BackwardArgs& a) { a.d_query.data = nullptr; }},
      {"d_value", {}, [](BackwardArgs& a) { a.d_key = a.d_value; }},
      {"d_value", {}, [](BackwardArgs& a) { a.d_value.strides[1] = 0; }},
      {"d_sinks", {}, [](BackwardArgs& a) { a.sinks.reset(); }},
      {"d_bias", {}, [](BackwardArgs& a) { a.d_bias->shape[0] = 1; }},
  };
}

Case refused_case() {
  Case c = small_case(DType::float32);
  c.sinks = c.d_lse = true;
  c.bias = BiasShape{true, true, true, true};
  c.key.used = {83, 20};
  return c;
}

template <class Args>
void expect_nothing_written(const TestedEngine& engine, const Case& c, Args (*make)(const Case&, Tensors&, Stay&),
                            void (*call)(const Args&, const Execution&), const std::function<void(Args&)>& spoil,
                            const std::string& argument) {
  Tensors t(c);
  std::vector<std::vector<std::byte>> before;
  const auto images = [&] {
    std::vector<std::vector<std::byte>> all;
    for (const Tensor* x : {&t.query, &t.key, &t.value, &t.out, &t.lse, &t.sinks, &t.bias, &t.d_out, &t.d_lse,
                            &t.d_query, &t.d_key, &t.d_value, &t.d_sinks, &t.d_bias}) {
      all.push_back(x->image());
    }
    return all;
  };
  before = images();
  const InUse in_use(engine);
  Stay stay(engine.memory);
  Args args = make(c, t, stay);
  spoil(args);
  try {
    call(args, {engine.engine, 0});
    ADD_FAILURE() << name_of(engine.engine) << " accepted a bad " << argument;
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(error.argument(), argument) << error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << name_of(engine.engine) << " threw something else for a bad " << argument << ": " << error.what();
  }
  stay.fetch();
  EXPECT_EQ(before, images()) << name_of(engine.engine) << " wrote before it refused a bad " << argument;
}

TEST(Refusal, NothingIsWritten) {
  const Case c = refused_case();
  for (const TestedEngine& engine : engines_present()) {
    for (const Spoiler& spoiler : spoilers()) {
      if (spoiler.forward) {
        expect_nothing_written<ForwardArgs>(engine, c, forward_args, forward, spoiler.forward, spoiler.argument);
      }
      if (spoiler.backward) {
        expect_nothing_written<BackwardArgs>(engine, c, backward_args, backward, spoiler.backward, spoiler.argument);
      }
    }
  }
}

TEST(Refusal, NegativeThreadsAreRefused) {
  const Case c = refused_case();
  for (const TestedEngine& engine : engines_present()) {
    Tensors t(c);
    const InUse in_use(engine);
    Stay stay(engine.memory);
    EXPECT_THROW(forward(forward_args(c, t, stay), {engine.engine, -1}), InvalidArgument);
    EXPECT_THROW(backward(backward_args(c, t, stay), {engine.engine, -1}), InvalidArgument);
  }
}

TEST(Refusal, DtypesThatAnEngineLacksAreRefusedByName) {
  Case c = small_case(DType::float64);
  Tensors t(c);
  Stay stay(nullptr);
  try {
    forward(forward_args(c, t, stay), {Engine::cpu, 0});
    ADD_FAILURE() << "cpu accepted float64";
  } catch (const Unsupported& refusal) {
    EXPECT_NE(std::string(refusal.what()).find("cpu"), std::string::npos) << refusal.what();
  }
  for (double x : t.out.values()) EXPECT_TRUE(std::isnan(x));
}

}  // namespace
}  // namespace flash3::test
