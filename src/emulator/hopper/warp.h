// Owns what the lanes of a warp do together, on the emulator: they meet, and a lane that goes elsewhere is a fault.
#pragma once

#include <bit>
#include <cstdint>

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline bool elect_one(Where where = Where::current()) { return emulator::elect(where); }
inline void sync_warp(Where where = Where::current()) { emulator::sync_warp(where); }

// Every lane gives `value` and gets that of lane from(own lane).
template <class T, class From>
T shuffled(T value, const char* what, Where where, From from) {
  static_assert(sizeof(T) == 4);
  const emulator::Words words = emulator::exchange(std::bit_cast<std::uint32_t>(value), what, where);
  return std::bit_cast<T>(static_cast<std::uint32_t>(words.lane[from(lane_index())]));
}

template <class T>
T shuffle_xor(T value, int mask, Where where = Where::current()) {
  return shuffled(value, "shuffle_xor", where, [=](int lane) { return lane ^ (mask & 31); });
}
template <class T>
T shuffle(T value, int source_lane, Where where = Where::current()) {
  return shuffled(value, "shuffle", where, [=](int) { return source_lane & 31; });
}
template <class T>
T shuffle_up(T value, int delta, Where where = Where::current()) {
  return shuffled(value, "shuffle_up", where, [=](int lane) { return lane < delta ? lane : lane - delta; });
}

inline unsigned vote_ballot(bool p, Where where = Where::current()) {
  const emulator::Words words = emulator::exchange(p, "vote", where);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= words.lane[lane] != 0 ? 1u << lane : 0u;
  return ballot;
}
inline bool vote_any(bool p, Where where = Where::current()) { return vote_ballot(p, where) != 0; }
inline bool vote_all(bool p, Where where = Where::current()) { return vote_ballot(p, where) == 0xffffffffu; }

}  // namespace flash3::hopper::inline FLASH3_MACHINE
