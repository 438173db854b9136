// Owns the shadow of shared memory: who touched each byte last, and whether the next one may.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "emulator/clock.h"
#include "emulator/report.h"

namespace flash3::emulator {

enum class Actor : std::uint8_t { thread, copy_in, copy_out, product, small_copy };
const char* to_string(Actor actor);

// One access by one agent: a thread at a time of its clock, or an asynchronous operation at its.
struct Toucher {
  Where where;
  std::uint32_t agent = 0;
  std::uint32_t time = 0;
  Actor actor = Actor::thread;
  // What the accessor knows: of everything, and of ordinary writes that were fenced for the async proxy.
  const Clock* known = nullptr;
  const Clock* fenced = nullptr;
  int agents = 1;  // wgmma reads B once for four warps: as agents agent ... agent + 3, all at that time

  bool async_proxy() const { return actor != Actor::thread && actor != Actor::small_copy; }
};

enum class Manner : std::uint8_t { read, write, atomic };

struct Conflict {
  FaultKind kind;
  std::string text;
  Where earlier;
};

class Shadow {
 public:
  explicit Shadow(std::size_t bytes) : granules_((bytes + 15) / 16) {}

  // Records an access to `bytes` bytes that lie within one granule of 16, or says with what it conflicts.
  // `swizzle` is how an asynchronous operation understands the place, or 0.
  std::optional<Conflict> touch(std::uint32_t offset, std::uint32_t bytes, Manner manner, const Toucher& by,
                                std::uint8_t swizzle = 0);

 private:
  struct Record {
    Where where;
    std::uint32_t agent, time;
    std::uint16_t mask;  // which of the 16 bytes
    std::uint8_t agents;
    Actor actor;
    Manner manner;
  };
  struct Granule {
    std::vector<Record> records;
    std::uint16_t written = 0;
    std::uint8_t swizzle = 0;  // of the copy that wrote it; 0 unknown
  };

  std::vector<Granule> granules_;
};

}  // namespace flash3::emulator
