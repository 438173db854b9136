// The planner: which kernel, which order of heads, which refusal.
#include "plan/forward_plan.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/check.h"
#include "flash3/flash3.h"

namespace flash3 {
namespace {

struct Shape {
  std::int64_t batch = 2, seqlen_q = 300, seqlen_kv = 300, heads_q = 4, heads_kv = 4, head_dim = 128, head_dim_v = 128;
  DType dtype = DType::bfloat16;
  bool causal = false;
};

// The planner looks at addresses, never at elements: any aligned number will do.
template <class Pointer>
Pointer somewhere(std::uintptr_t index) {
  return reinterpret_cast<Pointer>((index + 1) << 40);
}

ForwardArgs arguments(const Shape& s) {
  const Device gpu{DeviceType::cuda, 0};
  ForwardArgs args;
  args.query = {somewhere<const void*>(0), s.dtype, {s.batch, s.seqlen_q, s.heads_q, s.head_dim}, gpu};
  args.key = {somewhere<const void*>(1), s.dtype, {s.batch, s.seqlen_kv, s.heads_kv, s.head_dim}, gpu};
  args.value = {somewhere<const void*>(2), s.dtype, {s.batch, s.seqlen_kv, s.heads_kv, s.head_dim_v}, gpu};
  args.out = {somewhere<void*>(3), s.dtype, {s.batch, s.seqlen_q, s.heads_q, s.head_dim_v}, gpu};
  args.options.causal = s.causal;
  return args;
}

plan::ForwardPlan plan_of(const ForwardArgs& args) { return plan::plan_forward(core::check(args), plan::Gpu{}); }

std::string refusal_of(const ForwardArgs& args) { return plan::forward_refusal(core::check(args)).value_or(""); }

TEST(ForwardPlan, TakesTheSmallestKernelThatHoldsTheHeadDimensions) {
  struct {
    std::int64_t head_dim, head_dim_v;
    int expected, expected_v;
  } const rows[] = {{64, 64, 64, 64},    {1, 1, 64, 64},      {65, 64, 96, 96},     {96, 96, 96, 96},
                    {97, 96, 128, 128},  {64, 128, 128, 128}, {192, 128, 192, 128}, {192, 129, 192, 192},
                    {160, 16, 192, 128}, {193, 8, 256, 256},  {8, 256, 256, 256}};
  for (const auto& row : rows) {
    Shape shape;
    shape.head_dim = row.head_dim, shape.head_dim_v = row.head_dim_v;
    const auto plan = plan_of(arguments(shape));
    EXPECT_EQ(plan.tile.head_dim, row.expected) << row.head_dim << " " << row.head_dim_v;
    EXPECT_EQ(plan.tile.head_dim_v, row.expected_v) << row.head_dim << " " << row.head_dim_v;
  }
}

TEST(ForwardPlan, LongRowsGetTheirOwnTileAtHeadDim64) {
  Shape shape{.seqlen_q = 16384, .seqlen_kv = 16384, .head_dim = 64, .head_dim_v = 64};
  EXPECT_EQ(plan_of(arguments(shape)).tile.block_kv, 128);
  ForwardArgs args = arguments(shape);
  args.options.window_left = 1000;
  args.options.window_right = 0;
  EXPECT_EQ(plan_of(args).tile.block_kv, 64);
  shape.seqlen_q = shape.seqlen_kv = 1024;
  EXPECT_EQ(plan_of(arguments(shape)).tile.block_kv, 64);
}

TEST(ForwardPlan, LongRowsGetThreeWarpgroupsAtHeadDim128) {
  Shape shape{.seqlen_q = 1024, .seqlen_kv = 1024, .head_dim = 128, .head_dim_v = 128};
  EXPECT_EQ(plan_of(arguments(shape)).tile.warpgroups, 3);
  ForwardArgs args = arguments(shape);
  args.options.causal = true;  // a row sees half as many
  EXPECT_EQ(plan_of(args).tile.warpgroups, 2);
  shape.seqlen_q = shape.seqlen_kv = 512;
  EXPECT_EQ(plan_of(arguments(shape)).tile.warpgroups, 2);
  shape.heads_kv = 1;  // packed, they fill 192 rows
  EXPECT_EQ(plan_of(arguments(shape)).tile.warpgroups, 3);
  shape.seqlen_q = 1;  // few enough for two warpgroups
  shape.seqlen_kv = 5000;
  EXPECT_EQ(plan_of(arguments(shape)).tile.warpgroups, 2);
}

TEST(ForwardPlan, PacksHeadsWhereThatMakesFewerTiles) {
  Shape decode{.seqlen_q = 1, .seqlen_kv = 5000, .heads_q = 32, .heads_kv = 4};
  EXPECT_EQ(plan_of(arguments(decode)).group, 8);
  EXPECT_EQ(plan_of(arguments(decode)).tiles, 4 * 2);
  Shape prefill{.seqlen_q = 4096, .seqlen_kv = 4096, .heads_q = 32, .heads_kv = 4, .head_dim = 256, .head_dim_v = 256};
  EXPECT_EQ(plan_of(arguments(prefill)).group, 1);
  Shape three{.seqlen_q = 1, .seqlen_kv = 5000, .heads_q = 6, .heads_kv = 2};  // 64 rows are no multiple of 3
  EXPECT_EQ(plan_of(arguments(three)).group, 1);
}

TEST(ForwardPlan, GroupsOfHeadsDivideTheHeadsAndFitL2) {
  for (std::int64_t seqlen : {512, 2048, 16384, 100000}) {
    for (std::int64_t heads_kv : {1, 3, 8, 16}) {
      Shape shape{.seqlen_q = seqlen, .seqlen_kv = seqlen, .heads_q = 2 * heads_kv, .heads_kv = heads_kv};
      shape.causal = true;
      const auto plan = plan_of(arguments(shape));
      ASSERT_TRUE(plan.longest_first);
      EXPECT_EQ(shape.batch * plan.heads % plan.heads_together, 0);
      const std::int64_t key_heads = plan.heads_together * heads_kv / plan.heads;
      EXPECT_TRUE(key_heads <= 1 || key_heads * seqlen * 256 * 2 <= plan::Gpu{}.l2_bytes);
    }
  }
}

TEST(ForwardPlan, RefusesWhatTmaCannotAddressAndSaysWhy) {
  const Device gpu{DeviceType::cuda, 0};
  ForwardArgs args = arguments({});
  EXPECT_EQ(refusal_of(args), "");
  args.query.data = somewhere<const char*>(0) + 2;
  EXPECT_NE(refusal_of(args).find("query is not aligned to 16 bytes"), std::string::npos);

  args = arguments({});
  args.key.strides[2] = 132;
  args.key.strides[1] = 132 * 4;
  args.key.strides[0] = 132 * 4 * 300;
  EXPECT_NE(refusal_of(args).find("head stride of key is 132 elements"), std::string::npos) << refusal_of(args);

  args = arguments({});
  args.value.strides[1] = -args.value.strides[1];
  EXPECT_NE(refusal_of(args).find("row stride of value"), std::string::npos) << refusal_of(args);

  Shape shape;
  shape.dtype = DType::float32;
  EXPECT_NE(refusal_of(arguments(shape)).find("float32"), std::string::npos);

  args = arguments({});
  args.bias = ConstTensorView(somewhere<const void*>(5), DType::float32, {1, 1, 300, 300}, gpu);
  EXPECT_NE(refusal_of(args).find("bias"), std::string::npos);
}

TEST(ForwardPlan, StridesOfDimensionsOfOneDoNotMatter) {
  ForwardArgs args = arguments({.batch = 1, .heads_q = 1, .heads_kv = 1});
  args.key.strides[0] = 7;
  args.key.strides[2] = 3;
  EXPECT_EQ(refusal_of(args), "");
}

TEST(ForwardPlan, EveryTileFitsTheMachine) {
  for (const plan::ForwardTile& tile : plan::forward_tiles) {
    EXPECT_LE(tile.shared_bytes(), plan::shared_bytes_a_block) << tile.head_dim;
    EXPECT_LE(128 * (tile.consumer_registers() * tile.warpgroups + tile.producer_registers()), plan::registers_an_sm)
        << tile.head_dim;
    EXPECT_GT(std::string(tile.reason).size(), 10u);
  }
}

}  // namespace
}  // namespace flash3
