// Owns the ring: stages of shared memory that a producer fills and consumers empty, each with a full and an empty
// barrier.
#pragma once

#include "hopper/mbarrier.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// The barriers of a ring, in shared memory. One thread calls init, then fence_mbarrier_init; a block barrier follows.
template <int stages_>
struct Ring {
  static constexpr int stages = stages_;

  // full completes with one arrival (arrive_expect_tx) and its bytes; empty, with `consumers` arrivals.
  FLASH3_DEVICE void init(unsigned consumers, Where where = Where::current()) {
    for (int stage = 0; stage < stages; ++stage) {
      mbarrier_init(full[stage], 1, where);
      mbarrier_init(empty[stage], consumers, where);
    }
  }

  Barrier full[stages];
  Barrier empty[stages];
};

// Where a thread stands in a ring: which stage is next, and how often it came round (mod 2).
template <int stages_>
struct RingPosition {
  static constexpr int stages = stages_;
  int stage = 0;
  unsigned parity = 0;

  FLASH3_DEVICE void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1u;
    }
  }
  FLASH3_DEVICE RingPosition next() const {
    RingPosition at = *this;
    at.advance();
    return at;
  }
};

// The producer may fill the stage: on the first round at once, later when all consumers have released it.
template <int stages>
FLASH3_DEVICE void wait_empty(Ring<stages>& ring, const RingPosition<stages>& at, Where where = Where::current()) {
  mbarrier_wait_parity(ring.empty[at.stage], at.parity ^ 1u, where);
}

// The producer announces how many bytes will come.
template <int stages>
FLASH3_DEVICE void announce(Ring<stages>& ring, const RingPosition<stages>& at, unsigned bytes,
                            Where where = Where::current()) {
  mbarrier_arrive_expect_tx(ring.full[at.stage], bytes, where);
}

// A consumer may read the stage.
template <int stages>
FLASH3_DEVICE void wait_full(Ring<stages>& ring, const RingPosition<stages>& at, Where where = Where::current()) {
  mbarrier_wait_parity(ring.full[at.stage], at.parity, where);
}

// Whether the stage is full already; and the wait that passes at once where that was so.
template <int stages>
FLASH3_DEVICE bool test_full(Ring<stages>& ring, const RingPosition<stages>& at, Where where = Where::current()) {
  return mbarrier_test_wait_parity(ring.full[at.stage], at.parity, where);
}
template <int stages>
FLASH3_DEVICE void wait_full_unless(bool full, Ring<stages>& ring, const RingPosition<stages>& at,
                                    Where where = Where::current()) {
  mbarrier_wait_parity_unless(full, ring.full[at.stage], at.parity, where);
}

// True if the stage is full already, or after a short while.
template <int stages>
FLASH3_DEVICE bool try_full(Ring<stages>& ring, const RingPosition<stages>& at, Where where = Where::current()) {
  return mbarrier_try_wait_parity(ring.full[at.stage], at.parity, where);
}

// A consumer has done with the stage. One arrival: init counts how many come.
template <int stages>
FLASH3_DEVICE void release(Ring<stages>& ring, const RingPosition<stages>& at, Where where = Where::current()) {
  mbarrier_arrive(ring.empty[at.stage], where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
