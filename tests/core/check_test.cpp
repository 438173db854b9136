// The border: every kind of bad argument is refused by name, and good ones become the problem they describe.
#include "core/check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace flash3::core {
namespace {

// Sound arguments of every kind, to be spoilt by a test.
struct Sound {
  static constexpr std::int64_t batch = 2, seqlen_q = 5, seqlen_kv = 7, heads_q = 6, heads_kv = 3, head_dim = 8,
                                head_dim_v = 4;
  std::vector<float> memory = std::vector<float>(100000);
  std::int64_t used = 0;
  ForwardArgs args;
  std::vector<std::int32_t> cu_q{0, 3, 10}, cu_k{0, 7, 14}, used_q{2, 7}, used_k{7, 0};

  TensorView make(std::initializer_list<std::int64_t> shape) {
    TensorView t(memory.data() + used, DType::float32, shape);
    used += t.numel();
    return t;
  }

  Sound() {
    args.query = make({batch, seqlen_q, heads_q, head_dim});
    args.key = make({batch, seqlen_kv, heads_kv, head_dim});
    args.value = make({batch, seqlen_kv, heads_kv, head_dim_v});
    args.out = make({batch, seqlen_q, heads_q, head_dim_v});
    args.lse = make({batch, heads_q, seqlen_q});
  }

  void make_varlen() {
    args.query = make({10, heads_q, head_dim});
    args.key = make({14, heads_kv, head_dim});
    args.value = make({14, heads_kv, head_dim_v});
    args.out = make({10, heads_q, head_dim_v});
    args.lse = make({heads_q, 10});
    args.cu_seqlens_q = ConstTensorView(cu_q.data(), DType::int32, {3});
    args.cu_seqlens_k = ConstTensorView(cu_k.data(), DType::int32, {3});
    args.seqused_q = ConstTensorView(used_q.data(), DType::int32, {2});
    args.seqused_k = ConstTensorView(used_k.data(), DType::int32, {2});
  }
};

template <class Args>
void expect_refused(const Args& args, const std::string& argument, const std::string& words) {
  try {
    check(args);
    ADD_FAILURE() << "accepted; expected " << argument << " to be refused: " << words;
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(error.argument(), argument) << error.what();
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(Check, SoundArgumentsBecomeTheirProblem) {
  Sound s;
  s.args.options.causal = true;
  s.args.options.window_left = 3;
  const ForwardProblem p = check(s.args);
  EXPECT_EQ(p.batch, 2);
  EXPECT_EQ(p.heads_q, 6);
  EXPECT_EQ(p.group(), 2);
  EXPECT_EQ(p.head_dim, 8);
  EXPECT_EQ(p.head_dim_v, 4);
  EXPECT_DOUBLE_EQ(p.softmax_scale, 1 / std::sqrt(8.0));
  EXPECT_EQ(p.sequence(1).band, (Band{2 - 3, 2}));
  EXPECT_EQ(p.sequence(1).q_offset(p.query, 2, 3), 1 * 5 * 6 * 8 + 3 * 6 * 8 + 2 * 8);
  EXPECT_EQ(p.lse.head_stride, 5);
}

TEST(Check, VariableLengthSequencesKnowTheirRows) {
  Sound s;
  s.make_varlen();
  const ForwardProblem p = check(s.args);
  EXPECT_EQ(p.batch, 2);
  EXPECT_EQ(p.max_seqlen_q, 7);
  const Sequence second = p.sequence(1);
  EXPECT_EQ(second.q_row, 3);
  EXPECT_EQ(second.seqlen_q, 7);
  EXPECT_EQ(second.kv_row, 7);
  EXPECT_EQ(second.seqlen_kv, 0);
  EXPECT_EQ(p.sequence(0).seqlen_q, 2);
}

TEST(Check, RankShapeDtypeDevice) {
  const auto spoil = [](auto change, const char* argument, const char* words) {
    Sound s;
    change(s);
    expect_refused(s.args, argument, words);
  };
  spoil([](Sound& s) { s.args.query = s.make({5, 8}); }, "query", "rank 4");
  spoil([](Sound& s) { s.args.query.rank = 9; }, "query", "rank is 9");
  spoil([](Sound& s) { s.args.query.shape[0] = -1; }, "query", "negative");
  spoil([](Sound& s) { s.args.query.shape = {1 << 30, 1 << 30, 1 << 30, 8}; }, "query", "64 bits");
  spoil([](Sound& s) { s.args.query.strides[0] = std::int64_t{1} << 62; }, "query", "64-bit");
  spoil([](Sound& s) { s.args.query.strides[0] = std::int64_t{1} << 56; }, "query", "64-bit");
  spoil([](Sound& s) { s.args.query.strides[0] = -(std::int64_t{1} << 48); }, "query", "64-bit");
  spoil([](Sound& s) { s.args.query.shape[1] = std::int64_t{1} << 50; }, "query", "2^48");
  spoil([](Sound& s) { s.args.query.data = nullptr; }, "query", "null");
  spoil([](Sound& s) { s.args.query.data = reinterpret_cast<const char*>(s.args.query.data) + 1; }, "query", "aligned");
  spoil([](Sound& s) { s.args.query.strides[3] = 2; }, "query", "contiguous");
  spoil([](Sound& s) { s.args.query.dtype = DType::int32; }, "query", "int32");
  spoil([](Sound& s) { s.args.query.dtype = static_cast<DType>(99); }, "query", "99");
  spoil([](Sound& s) { s.args.key.dtype = DType::float16; }, "key", "float16");
  spoil([](Sound& s) { s.args.value.device = {DeviceType::cuda, 1}; }, "value", "cuda:1");
  spoil(
      [](Sound& s) {
        s.args.key.shape[0] = 1;
        s.args.value.shape[0] = 1;
      },
      "key", "batch");
  spoil([](Sound& s) { s.args.key.shape[2] = 4; }, "key", "divisor");
  spoil([](Sound& s) { s.args.key.shape[2] = 0; }, "key", "divisor");
  spoil([](Sound& s) { s.args.query.shape[2] = 0; }, "query", "heads");
  spoil([](Sound& s) { s.args.key.shape[3] = 7; }, "key", "head_dim");
  spoil([](Sound& s) { s.args.value.shape[1] = 6; }, "value", "shape");
  spoil([](Sound& s) { s.args.value.shape[3] = 0; }, "value", "head_dim_v");
  spoil([](Sound& s) { s.args.query = s.make({2, 5, 6, 257}); }, "query", "257");
  spoil([](Sound& s) { s.args.out.shape[3] = 8; }, "out", "shape");
  spoil([](Sound& s) { s.args.out.dtype = DType::bfloat16; }, "out", "bfloat16");
  spoil([](Sound& s) { s.args.lse->shape[2] = 4; }, "lse", "shape");
  spoil([](Sound& s) { s.args.sinks = s.make({5}); }, "sinks", "(6)");
  spoil([](Sound& s) { s.args.bias = s.make({1, 1, 4, 7}); }, "bias", "seqlen_q 5");
  spoil([](Sound& s) { s.args.bias = s.make({5, 7}); }, "bias", "accepted");
  spoil(
      [](Sound& s) {
        s.args.bias = s.make({1, 1, 1, 7});
        s.args.bias->dtype = DType::float16;
      },
      "bias", "float16");
}

TEST(Check, Options) {
  const auto spoil = [](auto change, const char* argument, const char* words) {
    Sound s;
    change(s.args.options);
    expect_refused(s.args, argument, words);
  };
  spoil([](AttentionOptions& o) { o.softmax_scale = std::nan(""); }, "softmax_scale", "nan");
  spoil([](AttentionOptions& o) { o.softmax_scale = std::numeric_limits<double>::infinity(); }, "softmax_scale", "inf");
  spoil([](AttentionOptions& o) { o.softcap = -1; }, "softcap", "-1");
  spoil([](AttentionOptions& o) { o.softcap = std::nan(""); }, "softcap", "nan");
  spoil([](AttentionOptions& o) { o.window_left = -1; }, "window_left", "-1");
  spoil([](AttentionOptions& o) { o.window_right = -7; }, "window_right", "-7");
  spoil([](AttentionOptions& o) { o.alignment = static_cast<MaskAlignment>(7); }, "alignment", "7");
}

TEST(Check, Lengths) {
  const auto spoil = [](auto change, const char* argument, const char* words) {
    Sound s;
    s.make_varlen();
    change(s);
    expect_refused(s.args, argument, words);
  };
  spoil(
      [](Sound& s) {
        s.cu_q = {1, 3, 10};
        s.args.cu_seqlens_q->data = s.cu_q.data();
      },
      "cu_seqlens_q", "starts at 1");
  spoil([](Sound& s) { s.cu_q[1] = 11; }, "cu_seqlens_q", "falls from 11 to 10");
  spoil([](Sound& s) { s.cu_k[1] = -1; }, "cu_seqlens_k", "falls from 0 to -1");
  spoil([](Sound& s) { s.cu_q[2] = 11; }, "cu_seqlens_q", "beyond the 10 rows");
  spoil([](Sound& s) { s.used_q[0] = -1; }, "seqused_q", "-1");
  spoil([](Sound& s) { s.used_k[1] = 8; }, "seqused_k", "8");
  spoil([](Sound& s) { s.args.seqused_q->shape[0] = 1; }, "seqused_q", "accepted is one a sequence");
  spoil([](Sound& s) { s.args.cu_seqlens_q->dtype = DType::float32; }, "cu_seqlens_q", "float32");
  spoil([](Sound& s) { s.args.cu_seqlens_q->rank = 2; }, "cu_seqlens_q", "rank is 2");
  spoil([](Sound& s) { s.args.cu_seqlens_k->shape[0] = 2; }, "seqused_k", "accepted is one a sequence: 1");
  spoil([](Sound& s) { s.args.cu_seqlens_q.reset(); }, "query", "rank 4");
}

TEST(Check, OverlappingOutputs) {
  Sound s;
  s.args.out.data = const_cast<void*>(s.args.query.data);
  expect_refused(s.args, "out", "overlaps query");
  s = Sound();
  s.args.lse->data = s.args.out.data;
  expect_refused(s.args, "lse", "overlaps the output out");
  s = Sound();
  s.args.out.strides[0] = 0;
  expect_refused(s.args, "out", "share memory");
}

TEST(Check, InterleavedViewsOfOneBufferDoNotOverlap) {
  std::vector<float> memory(2 * 5 * 3 * 4 * 8);
  const auto slice = [&](int which, std::int64_t head_dim = 8) {
    return ConstTensorView(memory.data() + which * 32, DType::float32, {2, 5, 4, head_dim}, {5 * 96, 96, 8, 1});
  };
  EXPECT_FALSE(overlap(slice(0), slice(1)));
  EXPECT_FALSE(overlap(slice(2), slice(0)));
  EXPECT_TRUE(overlap(slice(1), slice(1)));
  EXPECT_TRUE(overlap(slice(0, 33), slice(1)));
  const auto heads_first = [&](int first) {
    return ConstTensorView(memory.data() + first * 8, DType::float32, {1, 5, 2, 8}, {0, 96, 8, 1});
  };
  EXPECT_FALSE(overlap(heads_first(0), heads_first(2)));
  EXPECT_TRUE(overlap(heads_first(0), heads_first(1)));
  // Fewer key heads than query heads in one projection: 6 + 3 + 3 heads of 8.
  const auto grouped = [&](std::int64_t first_head, std::int64_t heads) {
    return ConstTensorView(memory.data() + first_head * 8, DType::float32, {2, 5, heads, 8}, {5 * 96, 96, 8, 1});
  };
  EXPECT_FALSE(overlap(grouped(0, 6), grouped(6, 3)));
  EXPECT_FALSE(overlap(grouped(9, 3), grouped(0, 6)));
  EXPECT_TRUE(overlap(grouped(0, 6), grouped(5, 3)));
  EXPECT_TRUE(overlap(grouped(8, 3), grouped(10, 1)));
  EXPECT_FALSE(overlaps_itself(slice(0)));
  EXPECT_TRUE(overlaps_itself(ConstTensorView(memory.data(), DType::float32, {2, 8}, {7, 1})));
}

TEST(Check, BroadcastInputsAreAccepted) {
  Sound s;
  s.args.key.strides = {0, 0, 0, 1};
  EXPECT_EQ(check(s.args).key.seq_stride, 0);
  s.args.bias = s.make({1, 1, 1, 7});
  const ForwardProblem p = check(s.args);
  EXPECT_EQ(p.bias_offset(1, 3, 4), 0);
}

TEST(Check, EmptyProblemsAreAccepted) {
  ForwardArgs args;
  args.query = ConstTensorView(nullptr, DType::float32, {0, 5, 2, 8});
  args.key = args.value = ConstTensorView(nullptr, DType::float32, {0, 5, 2, 8});
  args.out = TensorView(nullptr, DType::float32, {0, 5, 2, 8});
  EXPECT_EQ(check(args).batch, 0);
  EXPECT_EQ(check(args).flops(), 0);
}

TEST(Check, Backward) {
  Sound s;
  BackwardArgs args;
  args.query = s.args.query;
  args.key = s.args.key;
  args.value = s.args.value;
  args.out = s.args.out;
  args.lse = *s.args.lse;
  args.d_out = s.make({2, 5, 6, 4});
  args.d_query = s.make({2, 5, 6, 8});
  args.d_key = s.make({2, 7, 3, 8});
  args.d_value = s.make({2, 7, 3, 4});
  EXPECT_EQ(check(args).d_value.head_stride, 4);
  BackwardArgs bad = args;
  bad.d_key.shape[1] = 6;
  expect_refused(bad, "d_key", "key's shape");
  bad = args;
  bad.d_sinks = s.make({6});
  expect_refused(bad, "d_sinks", "sinks is not");
  bad = args;
  bad.d_bias = s.make({1, 1, 5, 7});
  expect_refused(bad, "d_bias", "bias is not");
  bad = args;
  bad.d_value.data = bad.d_key.data;
  expect_refused(bad, "d_value", "overlaps the output d_key");
  bad = args;
  bad.d_query.data = const_cast<void*>(bad.out.data);
  expect_refused(bad, "d_query", "overlaps");
  bad = args;
  bad.lse.dtype = DType::float64;
  expect_refused(bad, "lse", "float64");
}

}  // namespace
}  // namespace flash3::core
