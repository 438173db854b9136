// Owns what the lanes of a warp do together: election, shuffles, votes. All 32 lanes call each of these.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// elect.sync _|leader, 0xffffffff;  True in one lane, always the same one.
FLASH3_DEVICE bool elect_one(Where = Where::current()) {
  unsigned leader;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(leader)
      :
      : "memory");
  return leader != 0;
}

// bar.warp.sync 0xffffffff;  Also orders the lanes' memory accesses.
FLASH3_DEVICE void sync_warp(Where = Where::current()) { __syncwarp(); }

// shfl.sync.bfly.b32 d, value, mask, 0x1f, 0xffffffff;  T has 4 bytes.
template <class T>
FLASH3_DEVICE T shuffle_xor(T value, int mask, Where = Where::current()) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// shfl.sync.idx.b32 d, value, source_lane, 0x1f, 0xffffffff;
template <class T>
FLASH3_DEVICE T shuffle(T value, int source_lane, Where = Where::current()) {
  return __shfl_sync(0xffffffffu, value, source_lane);
}

// shfl.sync.up.b32 d, value, delta, 0, 0xffffffff;  The first `delta` lanes keep their own value.
template <class T>
FLASH3_DEVICE T shuffle_up(T value, int delta, Where = Where::current()) {
  return __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(delta));
}

// vote.sync.any.pred p, q, 0xffffffff;
FLASH3_DEVICE bool vote_any(bool p, Where = Where::current()) { return __any_sync(0xffffffffu, p) != 0; }

// vote.sync.all.pred p, q, 0xffffffff;
FLASH3_DEVICE bool vote_all(bool p, Where = Where::current()) { return __all_sync(0xffffffffu, p) != 0; }

// vote.sync.ballot.b32 d, q, 0xffffffff;
FLASH3_DEVICE unsigned vote_ballot(bool p, Where = Where::current()) { return __ballot_sync(0xffffffffu, p); }

}  // namespace flash3::hopper::inline FLASH3_MACHINE
