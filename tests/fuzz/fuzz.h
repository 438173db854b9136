// What the fuzzers share: how a broken promise ends the process, and bytes as numbers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <span>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

inline void require(bool condition, const char* broken) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", broken);
  std::abort();
}

// Reads numbers off the front of the input; zeros when it has run out.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  bool empty() const { return rest_.empty(); }

  std::uint8_t byte() {
    if (rest_.empty()) return 0;
    const std::uint8_t value = rest_.front();
    rest_ = rest_.subspan(1);
    return value;
  }

  // In [0, limit).
  int below(int limit) { return byte() % limit; }

  // Mostly small, at times near a power of two, at times anything: what lengths and strides go wrong at.
  std::int64_t integer() {
    const std::uint8_t kind = byte();
    if (kind < 128) return static_cast<std::int8_t>(byte());
    if (kind < 192) {
      const auto power = std::uint64_t{1} << (kind & 63);
      return static_cast<std::int64_t>(power + static_cast<std::uint64_t>(static_cast<std::int8_t>(byte())));
    }
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<std::int64_t>(value);
  }

  double real() {
    constexpr double special[]{0,
                               -1,
                               1e-310,
                               1e300,
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity(),
                               std::numeric_limits<double>::quiet_NaN()};
    const std::uint8_t kind = byte();
    return kind < std::size(special) ? special[kind] : kind / 16.0;
  }

 private:
  std::span<const std::uint8_t> rest_;
};
