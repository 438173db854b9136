// Random numbers that are the same everywhere for the same seed, and the distributions that attention is tested with.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numbers>

namespace flash3::test {

// SplitMix64 (Steele, Lea and Flood 2014): one 64-bit state, any seed is good.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  // From low to high, both included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(high - low + 1));
  }

  bool chance(double probability) { return uniform() < probability; }

  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[between(0, static_cast<std::int64_t>(choices.size()) - 1)];
  }

  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

  // A generator of its own for a part of the work, so that adding a part leaves the others' numbers alone.
  Random fork(std::uint64_t part) const { return Random(Random(state_ ^ (part * 0xd1342543de82ef95u)).next()); }

 private:
  std::uint64_t state_;
};

enum class Distribution : std::uint8_t {
  normal,           // N(0, 1)
  peaky,            // query N(0, 16^2): a few keys take all the weight
  outliers,         // N(0, 1) + N(0, 100) * Bernoulli(0.001), as in the FlashAttention-3 paper
  biased_channels,  // key channels with means of their own, as trained models have
};

}  // namespace flash3::test
