// The flags that several commands share, and how their values are read.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flash3/attention.h"

namespace flash3::tools {

// What is computed and on what: --causal, --window-left, --softcap, --scale, --engine, --threads and their like.
struct AttentionFlags {
  AttentionOptions options;
  Execution execution;

  void add_to(CLI::App& app);
  void add_execution_to(CLI::App& app);
};

using Names = std::vector<std::pair<std::string_view, int>>;

// An option whose value is one of a few names; `Value` is an enum.
template <class Value>
CLI::Option* add_choice(CLI::App& app, const std::string& flags, Value& value, const Names& names,
                        const std::string& help) {
  std::string all;
  for (const auto& [name, code] : names) all += (all.empty() ? "" : ", ") + std::string(name);
  const auto parse = [&value, names, all, flags](const std::string& text) {
    for (const auto& [name, code] : names) {
      if (name == text) {
        value = static_cast<Value>(code);
        return;
      }
    }
    throw CLI::ValidationError(flags.substr(0, flags.find(',')), "is '" + text + "', accepted are " + all);
  };
  return app.add_option_function<std::string>(flags, parse, help + ": " + all)->type_name("NAME");
}

// The floating-point types that tensors may have.
const Names& dtype_names();
const Names& engine_names();

// Comma-separated lists. Counts may end in k (times 1024), as in "512,1k,16k".
CLI::Option* add_counts(CLI::App& app, const std::string& flags, std::vector<std::int64_t>& values,
                        const std::string& help, std::int64_t smallest = 1);
CLI::Option* add_count(CLI::App& app, const std::string& flags, std::int64_t& value, const std::string& help,
                       std::int64_t smallest = 1);

// "one of these, in a list": each item is looked up in `names`.
template <class Value>
CLI::Option* add_choices(CLI::App& app, const std::string& flags, std::vector<Value>& values, const Names& names,
                         const std::string& help) {
  std::string all;
  for (const auto& [name, code] : names) all += (all.empty() ? "" : ", ") + std::string(name);
  const auto parse = [&values, names, all, flags](const std::vector<std::string>& items) {
    values.clear();
    for (const std::string& item : items) {
      bool found = false;
      for (const auto& [name, code] : names) {
        if (name != item) continue;
        values.push_back(static_cast<Value>(code));
        found = true;
      }
      if (!found) {
        throw CLI::ValidationError(flags.substr(0, flags.find(',')), "holds '" + item + "', accepted are " + all);
      }
    }
  };
  return app.add_option_function<std::vector<std::string>>(flags, parse, help + ": " + all)
      ->delimiter(',')
      ->option_text("NAME,...");
}

}  // namespace flash3::tools
