// The flags that several commands share, and how their values are read.
#include "options.h"

#include <charconv>

namespace flash3::tools {
namespace {

// A flag's first name, for messages: "--seqlen-q" of "--seqlen-q,--sq".
std::string first_name(const std::string& flags) { return flags.substr(0, flags.find(',')); }

std::int64_t parse_count(const std::string& flags, const std::string& text, std::int64_t smallest) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc{} && rest != end && (*rest == 'k' || *rest == 'K')) {
    ++rest;
    if (__builtin_mul_overflow(value, 1024, &value)) error = std::errc::result_out_of_range;
  }
  if (error != std::errc{} || rest != end || value < smallest) {
    throw CLI::ValidationError(first_name(flags), "is '" + text + "', accepted are integers from " +
                                                      std::to_string(smallest) + ", which may end in k (times 1024)");
  }
  return value;
}

}  // namespace

const Names& dtype_names() {
  static const Names names{{"float32", static_cast<int>(DType::float32)},
                           {"float16", static_cast<int>(DType::float16)},
                           {"bfloat16", static_cast<int>(DType::bfloat16)},
                           {"float64", static_cast<int>(DType::float64)}};
  return names;
}

const Names& engine_names() {
  static const Names names = [] {
    Names all;
    for (Engine e : {Engine::automatic, Engine::cuda, Engine::cpu, Engine::reference, Engine::emulator}) {
      all.emplace_back(name_of(e), static_cast<int>(e));
    }
    return all;
  }();
  return names;
}

CLI::Option* add_counts(CLI::App& app, const std::string& flags, std::vector<std::int64_t>& values,
                        const std::string& help, std::int64_t smallest) {
  const auto parse = [&values, flags, smallest](const std::vector<std::string>& items) {
    values.clear();
    for (const std::string& item : items) values.push_back(parse_count(flags, item, smallest));
  };
  return app.add_option_function<std::vector<std::string>>(flags, parse, help)->delimiter(',')->option_text("N,...");
}

CLI::Option* add_count(CLI::App& app, const std::string& flags, std::int64_t& value, const std::string& help,
                       std::int64_t smallest) {
  const auto parse = [&value, flags, smallest](const std::string& text) { value = parse_count(flags, text, smallest); };
  return app.add_option_function<std::string>(flags, parse, help)->type_name("N");
}

void AttentionFlags::add_to(CLI::App& app) {
  const std::string group = "Attention";
  app.add_option_function<double>(
         "--scale", [this](double x) { options.softmax_scale = x; }, "softmax_scale; 1 / sqrt(head_dim) if not given")
      ->type_name("X")
      ->group(group);
  app.add_flag("--causal", options.causal, "no query sees a key after its own position")->group(group);
  add_choice(app, "--alignment", options.alignment,
             {{"bottom-right", static_cast<int>(MaskAlignment::bottom_right)},
              {"top-left", static_cast<int>(MaskAlignment::top_left)}},
             "corner that causal and window are aligned to")
      ->group(group);
  const auto window = [&](const std::string& flag, std::optional<std::int64_t>& value, const std::string& help) {
    app.add_option_function<std::int64_t>(
           flag, [&value](std::int64_t x) { value = x; }, help)
        ->type_name("N")
        ->group(group);
  };
  window("--window-left", options.window_left, "keys before its position that a query sees; no limit if not given");
  window("--window-right", options.window_right, "keys after its position that a query sees; no limit if not given");
  app.add_option("--softcap", options.softcap, "scores become softcap * tanh(score / softcap); 0 is off")
      ->type_name("X")
      ->group(group);
}

void AttentionFlags::add_execution_to(CLI::App& app) {
  const std::string group = "Execution";
  add_choice(app, "--engine", execution.engine, engine_names(), "what computes")->group(group);
  app.add_option("--threads", execution.num_threads, "CPU threads; 0 is every core")->type_name("N")->group(group);
}

}  // namespace flash3::tools
