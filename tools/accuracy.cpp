// flash3 accuracy: errors against float64, by dtype, distribution and engine.
#include <array>
#include <memory>

#include "commands.h"
#include "inputs.h"
#include "json.h"
#include "options.h"
#include "random.h"
#include "terminal.h"
#include "verify.h"

namespace flash3::tools {
namespace {

enum class Distribution { normal, peaky, outliers, channel_bias };

const Names& distribution_names() {
  static const Names names{{"normal", static_cast<int>(Distribution::normal)},
                           {"peaky", static_cast<int>(Distribution::peaky)},
                           {"outliers", static_cast<int>(Distribution::outliers)},
                           {"channel-bias", static_cast<int>(Distribution::channel_bias)}};
  return names;
}

std::string_view name_of(Distribution d) { return distribution_names()[static_cast<std::size_t>(d)].first; }

struct Flags {
  AttentionFlags attention;
  std::vector<DType> dtypes{DType::float32, DType::bfloat16, DType::float16};
  std::vector<Distribution> distributions{Distribution::normal, Distribution::peaky, Distribution::outliers,
                                          Distribution::channel_bias};
  std::int64_t batch = 1, seqlen = 1024, heads_q = 4, heads_kv = 0, head_dim = 128;
  std::int64_t seed = 1;
  bool json = false;
};

struct Inputs3 {
  OwnedTensor query, key, value;
};

// N(0, 1) throughout; and
//   peaky         query times 8: a few keys take nearly all of the weight
//   outliers      + N(0, 100) for one element in a thousand, of query, key and value: the FlashAttention-3 paper's
//   channel_bias  key + a constant for each channel, N(0, 9): what real keys look like
Inputs3 make_inputs(const Flags& flags, DType dtype, Distribution distribution) {
  const std::int64_t heads_kv = flags.heads_kv > 0 ? flags.heads_kv : flags.heads_q;
  Inputs3 inputs{OwnedTensor(dtype, {flags.batch, flags.seqlen, flags.heads_q, flags.head_dim}),
                 OwnedTensor(dtype, {flags.batch, flags.seqlen, heads_kv, flags.head_dim}),
                 OwnedTensor(dtype, {flags.batch, flags.seqlen, heads_kv, flags.head_dim})};
  Random random(static_cast<std::uint64_t>(flags.seed));
  std::vector<double> channel(static_cast<std::size_t>(heads_kv * flags.head_dim));
  for (double& x : channel) x = 3 * random.normal();
  const auto fill = [&](const OwnedTensor& tensor, double factor, bool biased) {
    for (std::int64_t i = 0; i < tensor.view.numel(); ++i) {
      double x = factor * random.normal();
      if (distribution == Distribution::outliers && random.uniform() < 0.001) x += 10 * random.normal();
      if (biased) x += channel[static_cast<std::size_t>(i) % channel.size()];
      store(tensor.view, i, x);
    }
  };
  fill(inputs.query, distribution == Distribution::peaky ? 8 : 1, false);
  fill(inputs.key, 1, distribution == Distribution::channel_bias);
  fill(inputs.value, 1, false);
  return inputs;
}

struct Row {
  DType dtype;
  Distribution distribution;
  std::string method;  // an engine's name, or "naive"
  ErrorFigures out, lse;
};

// The engines that can run the problem: those asked for, or all that are for use; and the reference, whose error is the
// rounding of inputs apart, that of the output alone.
std::vector<Engine> engines_for(const ForwardArgs& args, const Flags& flags) {
  if (flags.attention.execution.engine != Engine::automatic) {
    plan_forward(args, flags.attention.execution);  // throws if it cannot
    return {flags.attention.execution.engine};
  }
  std::vector<Engine> engines;
  for (Engine engine : {Engine::cuda, Engine::cpu, Engine::reference}) {
    try {
      plan_forward(args, {.engine = engine, .num_threads = flags.attention.execution.num_threads});
      engines.push_back(engine);
    } catch (const Unsupported&) {
    }
  }
  return engines;
}

int accuracy(const Flags& flags) {
  std::vector<Row> rows;
  {
    Progress progress(static_cast<int>(flags.dtypes.size() * flags.distributions.size()));
    int done = 0;
    for (DType dtype : flags.dtypes) {
      for (Distribution distribution : flags.distributions) {
        progress.show(done++, fmt::format("{} {}", name_of(dtype), name_of(distribution)));
        const Inputs3 inputs = make_inputs(flags, dtype, distribution);
        ForwardArgs args;
        args.query = inputs.query.view;
        args.key = inputs.key.view;
        args.value = inputs.value.view;
        args.options = flags.attention.options;
        const Result result = make_result(args, dtype);
        args.out = result.out.view;
        args.lse = result.lse.view;
        const std::vector<Engine> engines = engines_for(args, flags);
        const Result reference = compute_reference(args);
        const auto add = [&](std::string_view method, const Result& r) {
          rows.push_back({dtype, distribution, std::string(method), compare(r.out.view, reference.out.view),
                          compare(r.lse.view, reference.lse.view)});
        };
        for (Engine engine : engines) {
          forward(args, {.engine = engine, .num_threads = flags.attention.execution.num_threads});
          add(name_of(engine), result);
        }
        add("naive", compute_naive(args));
      }
    }
  }

  const std::string problem =
      fmt::format("batch {}, seqlen {}, heads {}, head_dim {}{}", flags.batch, flags.seqlen, flags.heads_q,
                  flags.head_dim, flags.attention.options.causal ? ", causal" : "");
  if (flags.json) {
    Json list = Json::array();
    for (const Row& r : rows) {
      list.push_back({{"dtype", name_of(r.dtype)},
                      {"distribution", name_of(r.distribution)},
                      {"method", r.method},
                      {"out", to_json(r.out)},
                      {"lse", to_json(r.lse)}});
    }
    print(Json{{"seed", flags.seed}, {"problem", problem}, {"rows", list}});
  } else {
    fmt::print("{}, seed {}\n", problem, flags.seed);
    fmt::print("{:<10} {:<13} {:<10} {:>10} {:>10} {:>10} {:>12}\n", "dtype", "distribution", "method", "RMSE",
               "relative", "largest", "largest lse");
    for (const Row& r : rows) {
      fmt::print("{:<10} {:<13} {:<10} {:>10.2e} {:>10.2e} {:>10.2e} {:>12.2e}{}\n", name_of(r.dtype),
                 name_of(r.distribution), r.method, r.out.rmse, r.out.relative, r.out.largest, r.lse.largest,
                 r.out.nonfinite_mismatches > 0 ? fmt::format("  {} NaN or inf", r.out.nonfinite_mismatches) : "");
    }
    fmt::print(
        "naive: attention as written down, every step rounded to the dtype. reference: float64, so that what is left "
        "is\n"
        "the rounding of the output.\n");
  }
  return 0;
}

}  // namespace

Run add_accuracy(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  const std::string group = "Problem";
  add_choices(app, "--dtype", flags->dtypes,
              {{"float32", static_cast<int>(DType::float32)},
               {"bfloat16", static_cast<int>(DType::bfloat16)},
               {"float16", static_cast<int>(DType::float16)}},
              "all if not given")
      ->group(group);
  add_choices(app, "--distribution", flags->distributions, distribution_names(), "all if not given")->group(group);
  add_count(app, "--batch", flags->batch, "1 if not given")->group(group);
  add_count(app, "--seqlen", flags->seqlen, "1k if not given")->group(group);
  add_count(app, "--heads-q", flags->heads_q, "4 if not given")->group(group);
  add_count(app, "--heads-kv", flags->heads_kv, "key heads; as many as query heads if not given")->group(group);
  add_count(app, "--head-dim", flags->head_dim, "128 if not given")->group(group);
  add_count(app, "--seed", flags->seed, "of the random numbers; 1 if not given", 0)->group(group);
  flags->attention.add_to(app);
  flags->attention.add_execution_to(app);
  app.add_flag("--json", flags->json, "print JSON");
  app.footer(
      "Distributions: normal is N(0,1); peaky is normal with query times 8; outliers is the FlashAttention-3 paper's\n"
      "N(0,1) + N(0,100) * Bernoulli(0.001); channel-bias is normal with a constant N(0,9) for each channel of key.\n\n"
      "Examples:\n"
      "  flash3 accuracy\n"
      "  flash3 accuracy --dtype bfloat16 --distribution outliers --seqlen 4k --causal --json");
  return [flags] { return accuracy(*flags); };
}

}  // namespace flash3::tools
