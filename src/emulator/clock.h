// Owns vector clocks: what a thread, a barrier or a copy knows of everyone else's past.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace flash3::emulator {

// Component i says: everything that agent i did up to that time happened before. Missing components are 0.
class Clock {
 public:
  std::uint32_t at(std::uint32_t agent) const { return agent < times_.size() ? times_[agent] : 0; }

  void set(std::uint32_t agent, std::uint32_t time) {
    if (agent >= times_.size()) times_.resize(agent + 1, 0);
    times_[agent] = time;
  }

  void raise(std::uint32_t agent, std::uint32_t time) {
    if (at(agent) < time) set(agent, time);
  }

  // Learns all that `other` knows.
  void join(const Clock& other);

  // Keeps only what `other` knows too.
  void meet(const Clock& other);

  void clear() { std::fill(times_.begin(), times_.end(), 0u); }

 private:
  std::vector<std::uint32_t> times_;
};

}  // namespace flash3::emulator
