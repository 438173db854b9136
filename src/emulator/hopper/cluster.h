// Owns what the blocks of a cluster do together, on the emulator.
#pragma once

#include "hopper/shared.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline unsigned cluster_rank() { return emulator::place().cluster_rank; }
inline unsigned cluster_size() { return emulator::place().cluster_size; }
inline void cluster_arrive(Where where = Where::current()) { emulator::cluster_arrive(where); }
inline void cluster_wait(Where where = Where::current()) { emulator::cluster_wait(where); }
inline void sync_cluster(Where where = Where::current()) {
  emulator::cluster_arrive(where);
  emulator::cluster_wait(where);
}
inline SharedAddress map_to_block(SharedAddress address, unsigned rank) {
  return emulator::map_to_block(address, rank);
}
inline unsigned load_cluster_4(SharedAddress address, Where where = Where::current()) {
  unsigned d;
  emulator::read_shared(address, &d, 4, where, emulator::Window::cluster);
  return d;
}
inline void store_cluster_4(SharedAddress address, unsigned s, Where where = Where::current()) {
  emulator::write_shared(address, &s, 4, where, emulator::Window::cluster);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
