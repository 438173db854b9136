// Options that get lost on the way, or stick: classes 4, 9 and 23.
#include <string>
#include <utility>
#include <vector>

#include "bugs/bugs.h"

namespace flash3::test {
namespace {

struct Toggle {
  std::string name;
  void (*apply)(Case&);
  bool forward = true;  // changes out or lse; else only gradients
};

const std::vector<Toggle>& toggles() {
  static const std::vector<Toggle> all{
      {"softmax_scale", [](Case& c) { c.options.softmax_scale = 0.1; }},
      {"negative softmax_scale", [](Case& c) { c.options.softmax_scale = -0.1; }},
      {"zero softmax_scale", [](Case& c) { c.options.softmax_scale = 0.0; }},
      {"causal", [](Case& c) { c.options.causal = true; }},
      {"window_left", [](Case& c) { c.options.window_left = 20; }},
      {"window_right", [](Case& c) { c.options.window_right = 20; }},
      {"both windows", [](Case& c) { c.options.window_left = c.options.window_right = 7; }},
      {"causal, top left",
       [](Case& c) {
         c.options.causal = true;
         c.options.alignment = MaskAlignment::top_left;
       }},
      {"softcap", [](Case& c) { c.options.softcap = 1.5; }},
      {"sinks", [](Case& c) { c.sinks = true; }},
      {"bias",
       [](Case& c) {
         c.bias = BiasShape{true, true, true, true};
       }},
      {"bias in the dtype",
       [](Case& c) {
         c.bias = BiasShape{false, true, true, false};
       }},
      {"bias of keys alone", [](Case& c) { c.bias = BiasShape{}; }},
      {"d_lse", [](Case& c) { c.d_lse = true; }, false},
      {"seqused_k",
       [](Case& c) {
         c.key.used = {83, 40};
       }},
  };
  return all;
}

TEST(BugClass, Number04EveryFlagReachesTheKernel) {
  for (DType dtype : engine_dtypes) {
    const Case plain = small_case(dtype);
    verify(plain, Passes::forward_and_backward, again);
    for (const Toggle& toggle : toggles()) {
      SCOPED_TRACE(toggle.name);
      Case toggled = plain;
      toggle.apply(toggled);
      verify(toggled, Passes::forward_and_backward, again);
      for (const TestedEngine& engine : engines_present()) {
        const auto before = run(engine, plain, Passes::forward_and_backward);
        const auto after = run(engine, toggled, Passes::forward_and_backward);
        if (!before || !after) continue;
        EXPECT_FALSE(before->d_query.same_bits(after->d_query)) << name_of(engine.engine);
        EXPECT_EQ(before->out.same_bits(after->out), !toggle.forward) << name_of(engine.engine);
      }
    }
  }
}

TEST(BugClass, Number04AnAbsentLseChangesNothing) {
  for (const TestedEngine& engine : engines_present()) {
    const Case c = small_case(DType::float32);
    const auto with = run(engine, c, Passes::forward);
    const auto without = run(engine, c, Passes::forward, [](Tensors& t) { t.lse = Tensor(); });
    if (!with || !without) continue;
    EXPECT_TRUE(with->out.same_bits(without->out)) << name_of(engine.engine);
  }
}

TEST(BugClass, Number23NoOptionSticks) {
  for (const TestedEngine& engine : engines_present()) {
    for (DType dtype : engine_dtypes) {
      const Case plain = small_case(dtype);
      const auto first = run(engine, plain, Passes::forward_and_backward);
      if (!first) continue;
      for (const Toggle& toggle : toggles()) {
        Case toggled = plain;
        toggle.apply(toggled);
        run(engine, toggled, Passes::forward_and_backward);
        const auto again_plain = run(engine, plain, Passes::forward_and_backward);
        EXPECT_EQ(different_bits(*first, *again_plain), "") << name_of(engine.engine) << " after " << toggle.name;
      }
    }
  }
}

TEST(BugClass, Number09StateIsResetBetweenCallsOfChangingLengths) {
  std::vector<Case> sizes;
  Random random(9);
  for (int n = 0; n < 12; ++n) {
    Case c = small_case(n % 2 == 0 ? DType::bfloat16 : DType::float32);
    c.seed = static_cast<std::uint64_t>(n);
    std::vector<std::int64_t> lengths;
    for (std::int64_t b = random.between(1, 6); b > 0; --b) lengths.push_back(random.between(0, 150));
    c.query = Lengths::variable(lengths);
    c.key = Lengths::variable(lengths);
    c.options.causal = n % 3 == 0;
    c.head_dim = c.head_dim_v = random.pick({16, 64, 128});
    sizes.push_back(c);
  }
  for (const TestedEngine& engine : engines_present()) {
    std::vector<Tensors> first;
    for (const Case& c : sizes) {
      if (auto t = run(engine, c, Passes::forward_and_backward)) first.push_back(std::move(*t));
    }
    if (first.empty()) continue;
    for (std::int64_t round = cases(5); round > 0; --round) {
      for (std::size_t n = sizes.size(); n-- > 0;) {
        const auto t = run(engine, sizes[n], Passes::forward_and_backward);
        ASSERT_EQ(different_bits(first[n], *t), "") << name_of(engine.engine) << ": " << sizes[n].to_string();
      }
    }
  }
}

}  // namespace
}  // namespace flash3::test
