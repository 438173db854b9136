// Owns the race check: FastTrack's idea with byte masks, and a second clock for the async proxy.
#include "emulator/shadow.h"

namespace flash3::emulator {

const char* to_string(Actor actor) {
  switch (actor) {
    case Actor::thread:
      return "a thread";
    case Actor::copy_in:
      return "a bulk copy to shared memory";
    case Actor::copy_out:
      return "a bulk copy from shared memory";
    case Actor::product:
      return "wgmma";
    case Actor::small_copy:
      return "cp.async";
  }
  return "";
}

std::optional<Conflict> Shadow::touch(std::uint32_t offset, std::uint32_t bytes, Manner manner, const Toucher& by,
                                      std::uint8_t swizzle) {
  Granule& granule = granules_[offset / 16];
  const auto mask = static_cast<std::uint16_t>(((1u << bytes) - 1u) << (offset % 16));
  const bool reads = manner != Manner::write;
  const bool writes = manner != Manner::read;

  const auto verb = [](Manner m) { return m == Manner::read ? "read" : m == Manner::write ? "write" : "atomic"; };
  const auto pair = [&](const Record& earlier) {
    return std::string(verb(manner)) + " by " + to_string(by.actor) + " at " + to_string(by.where) + "\n  " +
           verb(earlier.manner) + " by " + to_string(earlier.actor) + " at " + to_string(earlier.where);
  };
  const auto follows = [&](const Record& earlier) {
    for (std::uint32_t i = 0; i < earlier.agents; ++i) {
      if (by.known->at(earlier.agent + i) < earlier.time) return false;
    }
    return true;
  };
  if (reads && (granule.written & mask) != mask) {
    return Conflict{FaultKind::uninitialised,
                    std::string("read by ") + to_string(by.actor) + " at " + to_string(by.where) +
                        " of bytes that nothing has written",
                    {}};
  }
  for (const Record& record : granule.records) {
    if ((record.mask & mask) == 0) continue;
    const bool record_writes = record.manner != Manner::read;
    if (!record_writes && !writes) continue;
    if (record.manner == Manner::atomic && manner == Manner::atomic) continue;
    if (!follows(record)) {
      return Conflict{FaultKind::race, pair(record) + "\n  nothing orders one before the other", record.where};
    }
    const bool record_async = record.actor != Actor::thread && record.actor != Actor::small_copy;
    if (record_writes && !record_async && by.async_proxy() && by.fenced->at(record.agent) < record.time) {
      return Conflict{FaultKind::proxy, pair(record) + "\n  the writer did not execute fence_proxy_async in between",
                      record.where};
    }
  }
  if (reads && swizzle != 0 && granule.swizzle != 0 && granule.swizzle != swizzle) {
    return Conflict{FaultKind::descriptor,
                    std::string("read by ") + to_string(by.actor) + " at " + to_string(by.where) + " with swizzle " +
                        std::to_string(swizzle) + " of what a copy wrote with swizzle " +
                        std::to_string(granule.swizzle),
                    {}};
  }

  // Whatever this access follows and covers can be forgotten: who is ordered after this one is ordered after that too.
  std::erase_if(granule.records, [&](Record& record) {
    if (!follows(record)) return false;
    if (writes) record.mask &= static_cast<std::uint16_t>(~mask);
    return record.mask == 0 || (!writes && record.manner == Manner::read && (record.mask & ~mask) == 0);
  });
  granule.records.push_back(
      {by.where, by.agent, by.time, mask, static_cast<std::uint8_t>(by.agents), by.actor, manner});
  if (writes) {
    granule.written |= mask;
    granule.swizzle = by.actor == Actor::copy_in ? swizzle : 0;
  }
  return std::nullopt;
}

}  // namespace flash3::emulator
