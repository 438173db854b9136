// Owns mbarriers on the emulator.
#pragma once

#include "hopper/shared.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

struct Barrier {
  unsigned long long state;  // the emulator keeps its own
};

inline void mbarrier_init(Barrier& barrier, unsigned count, Where where = Where::current()) {
  emulator::mbarrier_init(shared_address(&barrier), count, where);
}
inline void mbarrier_inval(Barrier& barrier, Where where = Where::current()) {
  emulator::mbarrier_inval(shared_address(&barrier), where);
}
inline void mbarrier_arrive(Barrier& barrier, Where where = Where::current()) {
  emulator::mbarrier_arrive(shared_address(&barrier), 0, false, where);
}
inline void mbarrier_expect_tx(Barrier& barrier, unsigned bytes, Where where = Where::current()) {
  emulator::mbarrier_expect_tx(shared_address(&barrier), bytes, where);
}
inline void mbarrier_arrive_expect_tx(Barrier& barrier, unsigned bytes, Where where = Where::current()) {
  emulator::mbarrier_arrive(shared_address(&barrier), bytes, false, where);
}
inline void mbarrier_arrive_cluster(Barrier& barrier, unsigned rank, Where where = Where::current()) {
  emulator::mbarrier_arrive(emulator::map_to_block(shared_address(&barrier), rank), 0, true, where);
}
inline void mbarrier_arrive_release_cluster(Barrier& barrier, unsigned rank, Where where = Where::current()) {
  mbarrier_arrive_cluster(barrier, rank, where);
}
inline bool mbarrier_try_wait_parity(Barrier& barrier, unsigned parity, Where where = Where::current()) {
  return emulator::mbarrier_test(shared_address(&barrier), parity, where);
}
inline bool mbarrier_test_wait_parity(Barrier& barrier, unsigned parity, Where where = Where::current()) {
  return emulator::mbarrier_test(shared_address(&barrier), parity, where);
}
inline void mbarrier_wait_parity(Barrier& barrier, unsigned parity, Where where = Where::current()) {
  emulator::mbarrier_wait(shared_address(&barrier), parity, where);
}
inline void mbarrier_wait_parity_unless(bool done, Barrier& barrier, unsigned parity, Where where = Where::current()) {
  if (!done) mbarrier_wait_parity(barrier, parity, where);
}
inline void mbarrier_wait_parity_cluster(Barrier& barrier, unsigned parity, Where where = Where::current()) {
  mbarrier_wait_parity(barrier, parity, where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
