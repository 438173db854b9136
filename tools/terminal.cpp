// What a terminal gets and a pipe does not: colours, and a progress bar on stderr.
#include "terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace flash3::tools {
namespace {

bool is_smart_terminal(int descriptor) {
  const char* terminal = std::getenv("TERM");
  return isatty(descriptor) != 0 && terminal != nullptr && std::string_view(terminal) != "dumb";
}

bool wants_colour() {
  const char* no_color = std::getenv("NO_COLOR");
  return is_smart_terminal(STDOUT_FILENO) && (no_color == nullptr || *no_color == '\0');
}

}  // namespace

std::string paint_marks(std::string text) {
  if (!wants_colour()) return text;
  constexpr std::string_view green = "\x1b[32m", red = "\x1b[31m", plain = "\x1b[0m";
  for (const auto& [mark, colour] : {std::pair<std::string_view, std::string_view>{"✓", green}, {"✗", red}}) {
    for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at)) {
      const std::string painted = fmt::format("{}{}{}", colour, mark, plain);
      text.replace(at, mark.size(), painted);
      at += painted.size();
    }
  }
  return text;
}

Progress::Progress(int total) : total_(std::max(total, 1)), on_(is_smart_terminal(STDERR_FILENO)) {}

Progress::~Progress() {
  if (on_) fmt::print(stderr, "\r\x1b[K");
}

void Progress::show(int done, const std::string& what) {
  if (!on_) return;
  constexpr int width = 24;
  const int filled = width * done / total_;
  std::string bar;
  for (int i = 0; i < width; ++i) bar += i < filled ? "█" : "░";
  fmt::print(stderr, "\r\x1b[K{} {:>3}/{}  {}", bar, done, total_, what);
  std::fflush(stderr);
}

std::string text_of_seconds(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.3g} µs", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.4g} s", seconds);
}

std::string text_of_rate(double flops_per_second) {
  if (flops_per_second >= 1e12) return fmt::format("{:.4g} TFLOP/s", flops_per_second / 1e12);
  return fmt::format("{:.3g} GFLOP/s", flops_per_second / 1e9);
}

}  // namespace flash3::tools
