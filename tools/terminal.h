// What a terminal gets and a pipe does not: colours, and a progress bar on stderr.
#pragma once

#include <chrono>
#include <string>

namespace flash3::tools {

// Colours the marks ✓ and ✗ where stdout is a terminal that wants colours (NO_COLOR is respected).
std::string paint_marks(std::string text);

// A line on stderr that is overwritten, and is gone in the end. Silent where stderr is no terminal.
class Progress {
 public:
  explicit Progress(int total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(int done, const std::string& what);

 private:
  int total_;
  bool on_;
};

// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

// "1.23 ms", "4.56 s"
std::string text_of_seconds(double seconds);

// "123 GFLOP/s", "1.23 TFLOP/s"
std::string text_of_rate(double flops_per_second);

}  // namespace flash3::tools
