// The command flash3: which subcommand runs, and what becomes of its errors.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>

#include "commands.h"
#include "flash3/error.h"
#include "flash3/version.h"
#include "io/error.h"

namespace {

using namespace flash3::tools;

// Files without a flag are shown as "[FILE...]", not by their number.
struct Formatter : CLI::Formatter {
  std::string make_option_usage(const CLI::Option* option) const override {
    if (option->get_expected_max() <= 1) return CLI::Formatter::make_option_usage(option);
    return "[" + option->get_type_name() + "...]";
  }
};

// One line on stderr.
int fail(const std::string& command, std::string message, int code) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  fmt::print(stderr, "{}: {}\n", command, message);
  return code;
}

int run(const std::string& command, const Run& body) {
  try {
    const int code = body();
    // What a pipe or a full disk refused shows here at the latest.
    if (std::fflush(stdout) != 0) return fail(command, fmt::format("stdout: {}", std::strerror(errno)), 1);
    return code;
  } catch (const InputError& error) {
    return fail(command, error.what(), 2);
  } catch (const flash3::InvalidArgument& error) {
    return fail(command, error.what(), 2);
  } catch (const flash3::Unsupported& error) {
    return fail(command, error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail(command, "not enough memory", 1);
  } catch (const std::exception& error) {
    return fail(command, error.what(), 1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "flash3 computes exact attention, forward and backward, on the best machine present.\n\n"
      "  flash3 check                                     what this machine has, and which engine will run\n"
      "  flash3 attend data/minilm-layer0.safetensors --verify\n"
      "  flash3 plan --seqlen 8k --heads-q 32 --heads-kv 8 --head-dim 128 --causal\n"
      "  flash3 bench --plot speed.svg\n"
      "  flash3 accuracy --dtype bfloat16\n"
      "  flash3 ablate --json                             on a Hopper GPU, in a diagnostic build\n\n"
      "Exit codes: 0 success, 1 a verification or the run failed, 2 what was given cannot be accepted.",
      "flash3"};
  app.set_version_flag(
      "--version", fmt::format("flash3 {}.{}.{}", FLASH3_VERSION_MAJOR, FLASH3_VERSION_MINOR, FLASH3_VERSION_PATCH));
  app.require_subcommand(1);
  app.formatter(std::make_shared<Formatter>());
  app.get_formatter()->column_width(34);

  struct Command {
    CLI::App* app;
    Run run;
  };
  const auto add = [&](const char* name, const char* description, Run (*adder)(CLI::App&)) {
    CLI::App* command = app.add_subcommand(name, description);
    return Command{command, adder(*command)};
  };
  const std::array commands{
      add("check", "List what this machine has of what flash3 wants, and which engine will run.", add_check),
      add("attend", "Compute attention on tensors from files.", add_attend),
      add("plan", "Say what would run for a problem, and why, without running it.", add_plan),
      add("bench", "Measure speed over a grid of problems.", add_bench),
      add("accuracy", "Measure errors against float64.", add_accuracy),
      add("ablate", "Measure what each of the forward kernel's techniques is worth, on a GPU.", add_ablate),
  };

  const auto chosen = [&]() -> const Command* {
    const auto found = std::find_if(commands.begin(), commands.end(), [](const Command& c) { return c.app->parsed(); });
    return found == commands.end() ? nullptr : &*found;
  };
  const auto full_name = [&] { return chosen() ? "flash3 " + chosen()->app->get_name() : std::string("flash3"); };
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return fail(full_name(), fmt::format("{} (see {} --help)", error.what(), full_name()), 2);
  }
  return run(full_name(), chosen()->run);
}
