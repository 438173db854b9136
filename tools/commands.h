// The commands: each adds itself to the command line; running it gives the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace flash3::tools {

// 0 success, 1 a verification or the run failed, 2 what was given cannot be accepted.
using Run = std::function<int()>;

// Each returns what to run if its subcommand was chosen.
Run add_check(CLI::App& app);
Run add_attend(CLI::App& app);
Run add_plan(CLI::App& app);
Run add_bench(CLI::App& app);
Run add_accuracy(CLI::App& app);
Run add_ablate(CLI::App& app);

}  // namespace flash3::tools
