// Every kernel of kernels.def on the emulator under many schedules, with a record of it.
//
//   forward_emulator_seeds [--seeds n] [--filter text] [--json file]
//
// Two small problems a kernel, with several tiles a block of threads, that cross the tile in both directions: odd seeds
// run the one, even seeds the other. Seed i runs under policy i mod 5. The first result is compared with float64, all
// others with its bits.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>

#include "forward/emulator_machine.h"

namespace flash3::testing {
namespace {

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec) + static_cast<double>(usage.ru_utime.tv_usec) * 1e-6;
}

std::vector<Case> problems_of(const plan::ForwardTile& tile, DType dtype) {
  Case causal;
  causal.name = "causal";
  causal.dtype = dtype;
  causal.head_dim = tile.head_dim;
  causal.head_dim_v = tile.head_dim_v;
  causal.lengths_q = {tile.block_q() + 3};
  causal.lengths_kv = {2 * tile.block_kv + 5};
  causal.options.causal = true;

  Case variable = causal;
  variable.name = "variable length, grouped heads, window, sinks";
  variable.variable_q = variable.variable_kv = true;
  variable.heads_q = 2;
  variable.heads_kv = 1;
  variable.lengths_q = {1, 0, tile.block_q() - 1};
  variable.lengths_kv = {tile.block_kv + 1, 3, 3 * tile.block_kv};
  variable.options.causal = false;
  variable.options.window_left = tile.block_kv;
  variable.options.window_right = 3;
  variable.sinks = true;
  return {causal, variable};
}

// Runs a problem under every other seed from `first` to `last`; the time is CPU time.
struct Result {
  std::string why;  // empty: no report, right, always the same bits
  double seconds = 0;
};
Result run_seeds(Case problem, const plan::ForwardTile& tile, int first, int last) {
  emulator::Schedule schedule{static_cast<std::uint64_t>(first)};
  schedule.seed -= 2;
  Emulator machine(
      [&] {
        schedule.seed += 2;
        schedule.policy = emulator::all_policies[schedule.seed % std::size(emulator::all_policies)];
        return schedule;
      },
      2, &tile);
  problem.repeats = (last - first) / 2 + 1;
  Result result;
  const double start = cpu_seconds();
  try {
    const Outcome outcome = run(problem, machine);
    if (!outcome.ok) result.why = outcome.why;
  } catch (const std::exception& error) {
    result.why = fmt::format("seed {}, policy {}: {}", schedule.seed, to_string(schedule.policy), error.what());
  }
  result.seconds = cpu_seconds() - start;
  return result;
}

// A forward pass of 1 head, 512 x 512, head_dim 128.
double seconds_of_one_forward() {
  Case c;
  c.heads_q = c.heads_kv = 1;
  c.lengths_q = c.lengths_kv = {512};
  Emulator machine({1, emulator::Policy::random});
  const double start = cpu_seconds();
  if (const Outcome outcome = run(c, machine); !outcome.ok) fmt::print("512 x 512: {}\n", outcome.why);
  return cpu_seconds() - start;
}

std::string quoted(std::string text) {
  for (char& c : text) c = c == '"' || c == '\\' ? '\'' : c == '\n' ? ' ' : c;
  return '"' + text + '"';
}

}  // namespace
}  // namespace flash3::testing

int main(int argc, char** argv) {
  using namespace flash3;
  int seeds = 20;
  std::string filter, json;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--seeds") seeds = std::stoi(argv[i + 1]);
    if (option == "--filter") filter = argv[i + 1];
    if (option == "--json") json = argv[i + 1];
  }
  int failed = 0;
  double total = 0;
  std::string rows;
  for (const plan::ForwardTile& tile : plan::forward_tiles) {
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      const std::string kernel =
          fmt::format("{} {}x{}, {} keys", name_of(dtype), tile.head_dim, tile.head_dim_v, tile.block_kv);
      if (kernel.find(filter) == std::string::npos) continue;
      int first = 0;
      for (const testing::Case& problem : testing::problems_of(tile, dtype)) {
        const testing::Result result = testing::run_seeds(problem, tile, ++first, seeds);
        const int count = (seeds - first) / 2 + 1;
        fmt::print("{:<30} {:<46} {} seeds {:7.1f} s  {}\n", kernel, problem.name, count, result.seconds,
                   result.why.empty() ? "no report" : result.why);
        std::fflush(stdout);
        failed += !result.why.empty();
        total += result.seconds;
        rows += fmt::format(
            "{}{{\"kernel\": \"{}\", \"problem\": \"{}\", \"seeds\": {}, \"cpu_seconds\": {:.1f}, \"report\": {}}}",
            rows.empty() ? "" : ",\n  ", kernel, problem.name, count, result.seconds,
            result.why.empty() ? "null" : testing::quoted(result.why));
      }
    }
  }
  const double one = testing::seconds_of_one_forward();
  fmt::print("{} failed, {:.0f} s of CPU time; a forward of 1 head, 512 x 512, head_dim 128: {:.2f} s\n", failed, total,
             one);
  if (!json.empty()) {
    const char* commit = std::getenv("FLASH3_COMMIT");
    if (std::FILE* file = std::fopen(json.c_str(), "w")) {
      fmt::print(
          file,
          "{{\"commit\": \"{}\", \"compiler\": \"g++ {}\", \"policies\": [\"random\", \"run_ahead\", \"earliest\", "
          "\"latest\", \"priority\"],\n \"seed_i_runs_under_policy\": \"i mod 5\", \"failed\": {}, "
          "\"cpu_seconds\": {:.0f}, \"forward_1_head_512x512_d128_cpu_seconds\": {:.2f},\n \"runs\": [\n  {}\n]}}\n",
          commit != nullptr ? commit : "unknown", __VERSION__, failed, total, one, rows);
      std::fclose(file);
    }
  }
  return failed == 0 ? 0 : 1;
}
