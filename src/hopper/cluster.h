// Owns what the blocks of a cluster do together.
#pragma once

#include "hopper/shared.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// mov.u32 rank, %cluster_ctarank;
FLASH3_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// mov.u32 size, %cluster_nctarank;
FLASH3_DEVICE unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// barrier.cluster.arrive.release.aligned;
FLASH3_DEVICE void cluster_arrive(Where = Where::current()) {
  asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory");
}

// barrier.cluster.wait.acquire.aligned;
FLASH3_DEVICE void cluster_wait(Where = Where::current()) {
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
}

// All threads of all blocks of the cluster.
FLASH3_DEVICE void sync_cluster(Where where = Where::current()) {
  cluster_arrive(where);
  cluster_wait(where);
}

// mapa.shared::cluster.u32 remote, address, rank;  The same place in the shared memory of block `rank`.
FLASH3_DEVICE SharedAddress map_to_block(SharedAddress address, unsigned rank) {
  SharedAddress remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

// ld.shared::cluster.b32 d, [address];  Of any block of the cluster that has started and not ended: sync_cluster before
// and after. The other loads and stores reach the block's own memory only.
FLASH3_DEVICE unsigned load_cluster_4(SharedAddress address, Where = Where::current()) {
  unsigned d;
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(d) : "r"(address) : "memory");
  return d;
}

// st.shared::cluster.b32 [address], s;
FLASH3_DEVICE void store_cluster_4(SharedAddress address, unsigned s, Where = Where::current()) {
  asm volatile("st.shared::cluster.b32 [%0], %1;" : : "r"(address), "r"(s) : "memory");
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
