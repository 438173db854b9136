// The two ways in which a command fails, which are its exit codes.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace flash3::tools {

// What the user gave cannot be accepted: exit code 2. The text names the argument or the file.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Something failed on the way: exit code 1.
struct RuntimeFailure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw InputError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace flash3::tools
