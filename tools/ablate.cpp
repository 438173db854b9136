// flash3 ablate: what each of the forward kernel's techniques is worth, as a table or JSON.
#include "ablate.h"

#include <algorithm>
#include <memory>

#include "commands.h"
#include "flash3/check.h"
#include "io/error.h"
#include "json.h"
#include "options.h"
#include "terminal.h"

namespace flash3::tools {
namespace {

struct Flags {
  AblationProblem problem;
  std::int64_t runs = 20;
  bool json = false;
};

struct Variant {
  const char *value, *name;
  double paper;  // TFLOP/s in the paper's table, on an H100 at 1830 MHz; below 0: not there
};
[[maybe_unused]] constexpr Variant variants[] = {
    {"", "everything", 661},
    {"tiles", "no overlap between tiles", -1},
    {"overlap", "no overlap between warpgroups", -1},
    {"pipelining", "no GEMM-softmax pipelining", 582},
    {"specialisation", "no warp specialisation", 570},
};

// What this build or machine lacks for it; each in a sentence.
std::string lacking() {
  std::string text;
  const HardwareReport hardware = check_hardware();
  if (hardware.cuda.gpus.empty()) text += "; no NVIDIA GPU is found here (flash3 check says more)";
#ifndef FLASH3_HAS_ABLATION
  text += "; this flash3 holds no ablated kernels: build it with cmake -DFLASH3_ABLATION=ON, where nvcc is found";
#endif
  return text.empty() ? text : text.substr(2);
}

int ablate([[maybe_unused]] const Flags& flags) {
  if (const std::string text = lacking(); !text.empty()) refuse("needs a Hopper GPU and a diagnostic build: {}", text);
#ifdef FLASH3_HAS_ABLATION
  AblationProblem problem = flags.problem;
  problem.runs = static_cast<int>(flags.runs);
  std::vector<std::string> values;
  for (const Variant& v : variants) values.emplace_back(v.value);
  const std::vector<double> seconds = time_ablations(problem, values);
  const double flops = 4.0 * static_cast<double>(problem.batch * problem.heads) * static_cast<double>(problem.seqlen) *
                       static_cast<double>(problem.seqlen) * 128 / (problem.causal ? 2 : 1);
  const std::string machine = check_hardware().cuda.gpus.front().name;
  const std::string shape = fmt::format("float16, batch {}, heads {}, seqlen {}, head_dim 128, {}", problem.batch,
                                        problem.heads, problem.seqlen, problem.causal ? "causal" : "full");
  if (flags.json) {
    Json rows = Json::array();
    for (std::size_t i = 0; i < std::size(variants); ++i) {
      rows.push_back({{"kernel", variants[i].name}, {"seconds", seconds[i]}, {"flops_per_second", flops / seconds[i]}});
    }
    print(Json{{"machine", machine}, {"problem", shape}, {"runs", problem.runs}, {"kernels", rows}});
    return 0;
  }
  fmt::print("{}\n{}\n{:<32} {:>10} {:>10} {:>8}\n", machine, shape, "kernel", "time", "TFLOP/s", "paper");
  for (std::size_t i = 0; i < std::size(variants); ++i) {
    const std::string paper = variants[i].paper < 0 ? "" : fmt::format("{:.0f}", variants[i].paper);
    fmt::print("{:<32} {:>10} {:>10.0f} {:>8}\n", variants[i].name, text_of_seconds(seconds[i]),
               flops / seconds[i] / 1e12, paper);
  }
  fmt::print("medians of {} runs, the kernels in turns, L2 flushed before each\n", problem.runs);
#endif
  return 0;
}

}  // namespace

Run add_ablate(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  add_count(app, "--batch", flags->problem.batch, "4 if not given");
  add_count(app, "--heads", flags->problem.heads, "16 if not given");
  add_count(app, "--seqlen", flags->problem.seqlen, "8448 if not given");
  app.add_flag("--causal", flags->problem.causal, "with a causal mask");
  add_count(app, "--runs", flags->runs, "runs of each kernel; 20 if not given");
  app.add_flag("--json", flags->json, "print JSON");
  app.footer(
      "The problem is that of the FlashAttention-3 paper's ablation. It needs a Hopper GPU and a diagnostic build, and "
      "exits\n"
      "with 2 where either is missing, saying which.\n\n"
      "Examples:\n"
      "  cmake --preset release -DFLASH3_ABLATION=ON && cmake --build build/release --target flash3_command\n"
      "  build/release/tools/flash3 ablate\n"
      "  build/release/tools/flash3 ablate --causal --runs 50 --json");
  return [flags] { return ablate(*flags); };
}

}  // namespace flash3::tools
