// The forward kernels on a GPU.
//
//   flash3_gpu_tests [--filter text] [--seconds n] [--repeats n] [--json file]
//
// A kernel that hangs ends the program after n seconds; what came before is in the file.
#include "forward/gpu_sequences.h"

namespace {

// Sequences of many lengths, most of them empty: tiles that turn out to be nothing, many in a row.
std::vector<flash3::testing::Case> many_sequences() {
  flash3::testing::Case c;
  c.name = "1000 sequences, most of them empty";
  c.variable_q = c.variable_kv = true;
  c.lengths_q.clear();
  c.lengths_kv.clear();
  for (int i = 0; i < 1000; ++i) {
    c.lengths_q.push_back(i % 97 == 5 ? 130 : i % 13 == 0 ? i % 7 : 0);
    c.lengths_kv.push_back(i % 89 == 3 ? 150 : i % 11 == 0 ? i % 9 : 0);
  }
  c.options.causal = true;
  flash3::testing::Case one = c;
  one.name = "one head, one row, one key";
  one.variable_q = one.variable_kv = false;
  one.heads_q = one.heads_kv = 1;
  one.lengths_q = one.lengths_kv = {1};
  return {c, one};
}

}  // namespace

int main(int argc, char** argv) {
  std::string filter, json;
  unsigned seconds = 30;
  int repeats = 200;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--filter") filter = argv[i + 1];
    if (option == "--seconds") seconds = static_cast<unsigned>(std::stoul(argv[i + 1]));
    if (option == "--json") json = argv[i + 1];
    if (option == "--repeats") repeats = std::stoi(argv[i + 1]);
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fmt::print("no CUDA device\n");
    return 77;
  }
  flash3::testing::Gpu gpu(seconds);
  int passed = 0, failed = 0;
  std::string results;
  const auto save = [&] {
    if (json.empty()) return;
    if (std::FILE* file = std::fopen(json.c_str(), "w")) {
      fmt::print(file, "[\n  {}\n]\n", results);
      std::fclose(file);
    }
  };
  const auto note = [&](const std::string& name, const flash3::testing::Outcome& outcome) {
    (outcome.ok ? passed : failed)++;
    if (!outcome.ok) fmt::print("\rFAIL {}: {}\n", name, outcome.why);
    std::fflush(stdout);
    results += fmt::format(
        "{}{{\"test\": \"{}\", \"ok\": {}, \"error\": {:.4g}, \"allowed\": {:.4g}, \"lse_error\": {:.3g}}}",
        results.empty() ? "" : ",\n  ", name, outcome.ok, outcome.error, outcome.allowed, outcome.lse_error);
    save();
  };
  std::vector<flash3::testing::Case> cases = flash3::testing::all_cases();
  for (flash3::testing::Case& c : many_sequences()) cases.push_back(std::move(c));
  for (const flash3::testing::Case& c : cases) {
    if (c.name.find(filter) == std::string::npos) continue;
    // If the kernel hangs, this line is the last.
    fmt::print(stderr, "\r{:<70}", c.name);
    std::fflush(stderr);
    flash3::testing::Outcome outcome;
    try {
      outcome = run(c, gpu);
    } catch (const flash3::Error& e) {
      outcome.ok = false;
      outcome.why = e.what();
    }
    note(c.name, outcome);
  }
  struct Sequence {
    std::string name;
    std::function<std::string()> run;
  };
  using namespace flash3::testing;
  std::vector<Sequence> sequences{
      {fmt::format("{} repeats, the same bits", repeats), [&] { return repeats_are_equal(repeats); }},
      {"captured in a graph and replayed", graphs_replay},
      {"captured in a graph, replayed with other lengths", graphs_replay_with_other_lengths},
      {"several streams at once", streams_do_not_disturb_each_other},
      {"outputs start poisoned", outputs_start_poisoned},
      {"inputs that arrive late on the caller's stream", waits_for_the_callers_stream},
      {"dependent calls back to back", dependent_calls_back_to_back},
      {"nothing at all", nothing_at_all},
      {"batch x heads over 65535", many_heads},
      {"more than 2^31 elements of keys", keys_beyond_31_bits},
      {"more than 2^31 elements of queries", queries_beyond_31_bits}};
  if (devices > 1) {
    sequences.push_back({"another device than the current", another_device_than_the_current});
    sequences.push_back({fmt::format("{} devices from several threads", devices),
                         [&] { return devices_from_several_threads(devices); }});
  } else {
    fmt::print("one device: what needs two is left out\n");
  }
  for (const auto& sequence : sequences) {
    if (sequence.name.find(filter) == std::string::npos) continue;
    alarm(10 * seconds + static_cast<unsigned>(repeats / 50));
    flash3::testing::Outcome outcome;
    try {
      outcome.why = sequence.run();
    } catch (const flash3::Error& e) {
      outcome.why = e.what();
    }
    outcome.ok = outcome.why.empty();
    alarm(0);
    note(sequence.name, outcome);
  }
  fmt::print("\r{} passed, {} failed{:60}\n", passed, failed, "");
  return failed == 0 ? 0 : 1;
}
