// Owns what the warps of a block do together, on the emulator.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline void sync_block(Where where = Where::current()) { emulator::named_barrier(0, block_threads(), true, where); }
inline void named_barrier_sync(int id, int threads, Where where = Where::current()) {
  emulator::named_barrier(id, threads, true, where);
}
inline void named_barrier_arrive(int id, int threads, Where where = Where::current()) {
  emulator::named_barrier(id, threads, false, where);
}

template <int registers>
void setmaxnreg_inc(Where where = Where::current()) {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  emulator::set_registers(registers, true, where);
}
template <int registers>
void setmaxnreg_dec(Where where = Where::current()) {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  emulator::set_registers(registers, false, where);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
