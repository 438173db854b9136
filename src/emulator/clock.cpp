// Owns the loops over vector clocks.
#include "emulator/clock.h"

#include <cstring>

namespace flash3::emulator {
namespace {

// Clocks have hundreds of components and joins are frequent: four at a time.
using Four = std::uint32_t __attribute__((vector_size(16)));

template <class Pick>
void combine(std::uint32_t* into, const std::uint32_t* from, std::size_t n, Pick pick) {
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    Four a, b;
    std::memcpy(&a, into + i, sizeof a);
    std::memcpy(&b, from + i, sizeof b);
    a = pick(a, b);
    std::memcpy(into + i, &a, sizeof a);
  }
  for (; i < n; ++i) into[i] = pick(into[i], from[i]);
}

}  // namespace

void Clock::join(const Clock& other) {
  if (times_.size() < other.times_.size()) times_.resize(other.times_.size(), 0);
  combine(times_.data(), other.times_.data(), other.times_.size(), [](auto a, auto b) { return a > b ? a : b; });
}

void Clock::meet(const Clock& other) {
  if (times_.size() > other.times_.size()) times_.resize(other.times_.size());
  combine(times_.data(), other.times_.data(), times_.size(), [](auto a, auto b) { return a < b ? a : b; });
}

}  // namespace flash3::emulator
