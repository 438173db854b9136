// flash3 plan: what would run for a problem, and why.
#include <algorithm>
#include <limits>
#include <memory>

#include "commands.h"
#include "inputs.h"
#include "io/error.h"
#include "json.h"
#include "options.h"

namespace flash3::tools {
namespace {

struct Flags {
  InputFlags inputs;
  AttentionFlags attention;
  std::int64_t batch = 1, seqlen_q = 0, seqlen_kv = 0, heads_q = 16, heads_kv = 0, head_dim = 128, head_dim_v = 0;
  std::vector<std::int64_t> seqlens_q, seqlens_kv;
  DType dtype = DType::bfloat16;
  bool sinks = false, bias = false, backward = false, json = false;
};

// int32 cumulative lengths: 0, a, a + b, ...
OwnedTensor cumulative(const char* flag, const std::vector<std::int64_t>& lengths) {
  OwnedTensor tensor(DType::int32, {static_cast<std::int64_t>(lengths.size()) + 1});
  auto* cu = static_cast<std::int32_t*>(tensor.view.data);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] > std::numeric_limits<std::int32_t>::max() - std::int64_t{cu[i]}) {
      refuse("{}: the lengths add up to more than 2^31 - 1 rows", flag);
    }
    cu[i + 1] = static_cast<std::int32_t>(cu[i] + lengths[i]);
  }
  return tensor;
}

// The problem that the flags describe; its tensors stand at addresses that are never touched.
ForwardArgs describe(const Flags& flags, std::vector<OwnedTensor>& memory) {
  const std::int64_t heads_kv = flags.heads_kv > 0 ? flags.heads_kv : flags.heads_q;
  const std::int64_t head_dim_v = flags.head_dim_v > 0 ? flags.head_dim_v : flags.head_dim;
  const auto& seqlens_q = flags.seqlens_q;
  const auto& seqlens_kv = flags.seqlens_kv.empty() ? flags.seqlens_q : flags.seqlens_kv;
  if (!seqlens_kv.empty() && seqlens_q.empty()) refuse("--seqlens-kv: needs --seqlens-q");
  if (!seqlens_q.empty() && flags.seqlen_q > 0) refuse("--seqlens-q: given together with --seqlen");
  const std::int64_t seqlen_q = flags.seqlen_q > 0 ? flags.seqlen_q : 4096;
  const std::int64_t seqlen_kv = flags.seqlen_kv > 0 ? flags.seqlen_kv : seqlen_q;

  ForwardArgs args;
  Shape query{flags.batch, seqlen_q, flags.heads_q, flags.head_dim};
  Shape key{flags.batch, seqlen_kv, heads_kv, flags.head_dim}, value{flags.batch, seqlen_kv, heads_kv, head_dim_v};
  Shape bias{1, flags.heads_q, seqlen_q, seqlen_kv};
  if (!seqlens_q.empty()) {
    memory = {cumulative("--seqlens-q", seqlens_q), cumulative("--seqlens-kv", seqlens_kv)};
    args.cu_seqlens_q = memory[0].view;
    args.cu_seqlens_k = memory[1].view;
    const auto total = [](const OwnedTensor& t) -> std::int64_t {
      return static_cast<const std::int32_t*>(t.view.data)[t.view.shape[0] - 1];
    };
    query = {total(memory[0]), flags.heads_q, flags.head_dim};
    key = {total(memory[1]), heads_kv, flags.head_dim};
    value = {total(memory[1]), heads_kv, head_dim_v};
    bias[2] = *std::max_element(seqlens_q.begin(), seqlens_q.end());
    bias[3] = *std::max_element(seqlens_kv.begin(), seqlens_kv.end());
  }
  args.query = placeholder(flags.dtype, query, 0);
  args.key = placeholder(flags.dtype, key, 1);
  args.value = placeholder(flags.dtype, value, 2);
  if (flags.sinks) args.sinks = placeholder(row_dtype(flags.dtype), {flags.heads_q}, 3);
  if (flags.bias) args.bias = placeholder(row_dtype(flags.dtype), bias, 4);
  return args;
}

Plan plan_backward_of(const ForwardArgs& f, const Execution& execution) {
  const DType dtype = f.query.dtype;
  const auto shape_of = [](const ConstTensorView& t) { return Shape(t.shape.begin(), t.shape.begin() + t.rank); };
  BackwardArgs b;
  b.query = f.query;
  b.key = f.key;
  b.value = f.value;
  b.cu_seqlens_q = f.cu_seqlens_q;
  b.cu_seqlens_k = f.cu_seqlens_k;
  b.seqused_q = f.seqused_q;
  b.seqused_k = f.seqused_k;
  b.options = f.options;
  b.out = f.out;
  b.lse = placeholder(row_dtype(dtype), lse_shape(f), 6);
  b.d_out = placeholder(dtype, out_shape(f), 7);
  b.d_query = placeholder(dtype, shape_of(f.query), 8);
  b.d_key = placeholder(dtype, shape_of(f.key), 9);
  b.d_value = placeholder(dtype, shape_of(f.value), 10);
  b.sinks = f.sinks;
  b.bias = f.bias;
  if (f.sinks) b.d_sinks = placeholder(row_dtype(dtype), shape_of(*f.sinks), 11);
  if (f.bias) b.d_bias = placeholder(f.bias->dtype, shape_of(*f.bias), 12);
  return plan_backward(b, execution);
}

int plan(const Flags& flags) {
  std::vector<OwnedTensor> memory;
  Inputs inputs;
  if (flags.inputs.any()) {
    inputs = read_inputs(flags.inputs);
  } else {
    inputs.args = describe(flags, memory);
  }
  ForwardArgs& args = inputs.args;
  args.options = flags.attention.options;
  args.out = placeholder(args.query.dtype, out_shape(args), 5);
  const Execution& execution = flags.attention.execution;
  const Plan plan = flags.backward ? plan_backward_of(args, execution) : plan_forward(args, execution);
  if (flags.json) {
    print(to_json(plan));
  } else {
    fmt::print("{}", plan.to_string());
  }
  return 0;
}

}  // namespace

Run add_plan(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  flags->attention.add_to(app);
  flags->attention.add_execution_to(app);
  const std::string group = "Problem";
  add_count(app, "--batch", flags->batch, "sequences; 1 if not given", 0)->group(group);
  add_count(app, "--seqlen,--seqlen-q", flags->seqlen_q, "queries a sequence; 4k if not given")->group(group);
  add_count(app, "--seqlen-kv", flags->seqlen_kv, "keys a sequence; as many as queries if not given")->group(group);
  add_counts(app, "--seqlens-q", flags->seqlens_q, "variable length: the queries of each sequence", 0)->group(group);
  add_counts(app, "--seqlens-kv", flags->seqlens_kv, "variable length: the keys of each sequence", 0)->group(group);
  add_count(app, "--heads-q", flags->heads_q, "query heads; 16 if not given")->group(group);
  add_count(app, "--heads-kv", flags->heads_kv, "key heads; as many as query heads if not given")->group(group);
  add_count(app, "--head-dim", flags->head_dim, "128 if not given")->group(group);
  add_count(app, "--head-dim-v", flags->head_dim_v, "that of value; head_dim if not given")->group(group);
  add_choice(app, "--dtype", flags->dtype, dtype_names(), "of the tensors, bfloat16 if not given")->group(group);
  app.add_flag("--with-sinks", flags->sinks, "with attention sinks")->group(group);
  app.add_flag("--with-bias", flags->bias, "with a bias for each head, query and key")->group(group);
  app.add_option("files", flags->inputs.files,
                 "instead: FILE.safetensors, or q.npy k.npy v.npy, as flash3 attend reads them")
      ->type_name("FILE")
      ->expected(0, 3);
  app.add_flag("--backward", flags->backward, "plan the backward pass");
  app.add_flag("--json", flags->json, "print JSON");
  app.footer(
      "No tensor is made or read, so problems of any size can be planned.\n\n"
      "Examples:\n"
      "  flash3 plan --seqlen 16k --heads-q 32 --heads-kv 8 --causal\n"
      "  flash3 plan --seqlens-q 37,300,2,131 --head-dim 64 --backward\n"
      "  flash3 plan data/minilm-layer0.safetensors --json");
  return [flags] { return plan(*flags); };
}

}  // namespace flash3::tools
