// Reads the environment once, and remembers what is running for the crash report.
#include "support/environment.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "support/random.h"

namespace flash3::test {
namespace {

// Fixed storage: a signal handler may read nothing else.
std::array<char, 4096> running{};

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // these report crashes themselves
void report_crash(int signal) {
  constexpr std::string_view opening = "\ncrashed in: ";
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, opening.data(), opening.size());
  written = write(STDERR_FILENO, running.data(), std::strlen(running.data()));
  written = write(STDERR_FILENO, "\n", 1);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

[[maybe_unused]] const bool crashes_are_reported = [] {
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) std::signal(signal, report_crash);
  return true;
}();
#endif

}  // namespace

std::uint64_t base_seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("FLASH3_SEED");
    std::uint64_t value = 20240711;  // the day of the paper
    if (text != nullptr && std::string_view(text) == "time") {
      value = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
    } else if (text != nullptr) {
      value = std::strtoull(text, nullptr, 0);
    }
    fmt::print("FLASH3_SEED={}\n", value);
    return value;
  }();
  return seed;
}

std::uint64_t case_seed(std::int64_t n) {
  return n == 0 ? base_seed() : Random(base_seed()).fork(static_cast<std::uint64_t>(n)).next();
}

std::int64_t cases(std::int64_t usual) {
  static const double factor = [] {
    const char* text = std::getenv("FLASH3_CASES");
    return text == nullptr ? 1.0 : std::strtod(text, nullptr);
  }();
  return std::max<std::int64_t>(1, std::llround(static_cast<double>(usual) * factor));
}

Reproduction::Reproduction(const std::string& what) {
  const std::size_t size = std::min(what.size(), running.size() - 1);
  std::memcpy(running.data(), what.data(), size);
  running[size] = 0;
}

Reproduction::~Reproduction() { running[0] = 0; }

std::string command_for(std::uint64_t seed) {
  const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
  return fmt::format("FLASH3_SEED={} FLASH3_CASES=0 {} --gtest_filter={}.{}", seed, program_invocation_short_name,
                     test ? test->test_suite_name() : "*", test ? test->name() : "*");
}

}  // namespace flash3::test
