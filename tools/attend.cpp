// flash3 attend: attention on tensors from files.
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "commands.h"
#include "inputs.h"
#include "io/error.h"
#include "io/npy.h"
#include "json.h"
#include "options.h"
#include "terminal.h"
#include "verify.h"

namespace flash3::tools {
namespace {

struct Flags {
  InputFlags inputs;
  AttentionFlags attention;
  std::string out, lse;
  bool verify = false;
  bool json = false;
};

// The files that results go to. That they can be written is tried before anything is computed.
class Outputs {
 public:
  Outputs(const Flags& flags, const Inputs& inputs) {
    if (!flags.out.empty()) open("--out", flags.out, inputs);
    if (!flags.lse.empty()) open("--lse", flags.lse, inputs);
  }

  // Writes all of them under temporary names, then moves all into place.
  void write(const Flags& flags, const ForwardArgs& args, const Result& result) {
    const auto shape_of = [](const TensorView& view) {
      return Shape(view.shape.begin(), view.shape.begin() + view.rank);
    };
    // In memory, out has the layout of the inputs.
    const Shape out_dims = shape_of(flags.inputs.layout == Layout::bhsd ? swap_heads_and_rows(args.out) : args.out);
    const NamedTensor out{"o", result.out.view.dtype, out_dims, result.out.bytes()};
    const NamedTensor lse{"lse", result.lse.view.dtype, shape_of(result.lse.view), result.lse.bytes()};
    std::vector<AtomicFile> files;
    for (const auto& [flag, path] : outputs_) {
      AtomicFile& file = files.emplace_back(path);
      const NamedTensor& main = flag == "--out" ? out : lse;
      if (path.extension() == ".npy") {
        write_npy(file, main.dtype, main.shape, main.data);
      } else {
        std::vector<NamedTensor> tensors{main};
        if (flag == "--out" && flags.lse.empty()) tensors.push_back(lse);
        write_safetensors(file, tensors, {{"producer", "flash3"}});
      }
    }
    for (AtomicFile& file : files) file.commit();
  }

  std::vector<std::string> paths() const {
    std::vector<std::string> all;
    for (const auto& [flag, path] : outputs_) all.push_back(path.string());
    return all;
  }

 private:
  struct Output {
    std::string flag;
    std::filesystem::path path;
  };

  void open(const std::string& flag, const std::filesystem::path& path, const Inputs& inputs) {
    if (path.extension() != ".npy" && path.extension() != ".safetensors") {
      refuse("{}: the name {} ends in '{}', accepted are .safetensors and .npy", flag, path.string(),
             path.extension().string());
    }
    std::error_code error;
    for (const auto& input : inputs.paths) {
      if (std::filesystem::equivalent(path, input, error)) refuse("{}: {} is an input", flag, path.string());
    }
    const auto place = [&](const std::filesystem::path& p) {
      return std::filesystem::weakly_canonical(std::filesystem::absolute(p), error);
    };
    for (const Output& output : outputs_) {
      if (place(output.path) == place(path)) refuse("{}: {} is also given as {}", flag, path.string(), output.flag);
    }
    try {
      const AtomicFile trial(path);
      outputs_.push_back({flag, path});
    } catch (const InputError& problem) {
      refuse("{}: {}", flag, problem.what());
    }
  }

  std::vector<Output> outputs_;
};

// The run whose result counts, and more of them where they are short, so that the time is not that of cold caches.
struct Timing {
  double seconds = 0;  // median
  int runs = 0;
};
Timing run_timed(const ForwardArgs& args, const Execution& execution) {
  constexpr double enough_seconds = 0.3;
  constexpr std::size_t enough_runs = 20;
  std::vector<double> seconds;
  const Stopwatch total;
  do {
    const Stopwatch watch;
    forward(args, execution);
    seconds.push_back(watch.seconds());
  } while (total.seconds() < enough_seconds && seconds.size() < enough_runs);
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2), seconds.end());
  return {seconds[seconds.size() / 2], static_cast<int>(seconds.size())};
}

std::string text_of(const Verdict& v, DType dtype) {
  const auto line = [](std::string_view what, const ErrorFigures& e) {
    std::string text = fmt::format("  {:<16} {:>10.2e} {:>10.2e} {:>10.2e}", what, e.rmse, e.relative, e.largest);
    if (e.nonfinite_mismatches > 0) text += fmt::format("  and {} elements wrongly NaN or inf", e.nonfinite_mismatches);
    return text + "\n";
  };
  const std::string naive = fmt::format("naive {}", name_of(dtype));
  return fmt::format("error    against float64 {:>11} {:>10} {:>10}\n", "RMSE", "relative", "largest") +
         line("out", v.out) + line("  " + naive, v.naive_out) + line("lse", v.lse) + line("  " + naive, v.naive_lse) +
         (v.passed ? "verify   ✓ within twice the error of naive attention in the same precision\n"
                   : "verify   ✗ beyond twice the error of naive attention in the same precision\n");
}

int attend(const Flags& flags) {
  Inputs inputs = read_inputs(flags.inputs);
  ForwardArgs& args = inputs.args;
  args.options = flags.attention.options;
  const Execution& execution = flags.attention.execution;
  const DType dtype = args.query.dtype;

  args.out = placeholder(dtype, out_shape(args), 0);
  const Plan plan = plan_forward(args, execution);
  if (flags.verify && dtype == DType::float64) {
    refuse("--verify: query is float64, which the reference itself computes; accepted are float32, float16, bfloat16");
  }
  Outputs outputs(flags, inputs);

  // Out in the layout of the inputs, seen as the library wants it.
  Shape shape = out_shape(args);
  const bool swapped = flags.inputs.layout == Layout::bhsd;
  if (swapped) std::swap(shape[shape.size() - 3], shape[shape.size() - 2]);
  Result result{OwnedTensor(dtype, shape), OwnedTensor(row_dtype(dtype), lse_shape(args))};
  if (swapped) result.out.view = swap_heads_and_rows(result.out.view);
  args.out = result.out.view;
  args.lse = result.lse.view;
  const Timing timing = run_timed(args, execution);

  std::optional<Verdict> verdict;
  if (flags.verify) verdict = judge(result, compute_naive(args), compute_reference(args));
  outputs.write(flags, args, result);

  const double rate = timing.seconds > 0 ? plan.flops / timing.seconds : 0;
  if (flags.json) {
    Json json{{"plan", to_json(plan)}, {"seconds", timing.seconds}, {"runs", timing.runs}, {"flops_per_second", rate}};
    if (verdict) {
      json["verify"] = {{"passed", verdict->passed},
                        {"out", to_json(verdict->out)},
                        {"lse", to_json(verdict->lse)},
                        {"naive_out", to_json(verdict->naive_out)},
                        {"naive_lse", to_json(verdict->naive_lse)}};
    }
    json["wrote"] = outputs.paths();
    print(json);
  } else {
    fmt::print("{}time     {}, {} ({})\n", plan.to_string(), text_of_seconds(timing.seconds), text_of_rate(rate),
               timing.runs > 1 ? fmt::format("median of {} runs", timing.runs) : "one run");
    if (verdict) fmt::print("{}", paint_marks(text_of(*verdict, dtype)));
    for (const std::string& path : outputs.paths()) fmt::print("wrote    {}\n", path);
  }
  return verdict && !verdict->passed ? 1 : 0;
}

}  // namespace

Run add_attend(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  flags->inputs.add_to(app);
  flags->attention.add_to(app);
  flags->attention.add_execution_to(app);
  app.add_option("-o,--out", flags->out,
                 "write o here, and lse too if this is a .safetensors file and --lse is not given")
      ->type_name("FILE")
      ->group("Results");
  app.add_option("--lse", flags->lse, "write lse here")->type_name("FILE")->group("Results");
  app.add_flag("--verify", flags->verify, "compare with float64, and exit 1 if the error is too large")
      ->group("Results");
  app.add_flag("--json", flags->json, "print JSON")->group("Results");
  app.footer(
      "A tensor is a .npy file, or FILE.safetensors:NAME. One .safetensors file alone may hold all: q, k, v (or "
      "query,\n"
      "key, value) and, if present, bias, sinks, cu_seqlens (or cu_seqlens_q, cu_seqlens_k), seqused_q, seqused_k.\n"
      "Files are written whole or not at all.\n\n"
      "Examples:\n"
      "  flash3 attend data/minilm-layer0.safetensors --verify\n"
      "  flash3 attend q.npy k.npy v.npy --causal --out o.npy --lse lse.npy\n"
      "  flash3 attend -q x.safetensors:layers.0.q -k x.safetensors:layers.0.k -v x.safetensors:layers.0.v \\\n"
      "    --layout bhsd --window-left 1023 --out o.safetensors");
  return [flags] { return attend(*flags); };
}

}  // namespace flash3::tools
