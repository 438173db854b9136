// Owns mbarriers: eight bytes of shared memory that count arrivals and transferred bytes, phase by phase.
#pragma once

#include "hopper/shared.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// Lives in shared memory. A phase completes when `count` arrivals came and no expected byte is missing.
struct Barrier {
  unsigned long long state;  // for the hardware alone
};

// mbarrier.init.shared::cta.b64 [address], count;
FLASH3_DEVICE void mbarrier_init(Barrier& barrier, unsigned count, Where = Where::current()) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(shared_address(&barrier)), "r"(count) : "memory");
}

// mbarrier.inval.shared::cta.b64 [address];
FLASH3_DEVICE void mbarrier_inval(Barrier& barrier, Where = Where::current()) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" : : "r"(shared_address(&barrier)) : "memory");
}

// mbarrier.arrive.shared::cta.b64 _, [address];
FLASH3_DEVICE void mbarrier_arrive(Barrier& barrier, Where = Where::current()) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(shared_address(&barrier)) : "memory");
}

// mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [address], bytes;
FLASH3_DEVICE void mbarrier_expect_tx(Barrier& barrier, unsigned bytes, Where = Where::current()) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"
               :
               : "r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// mbarrier.arrive.expect_tx.shared::cta.b64 _, [address], bytes;
FLASH3_DEVICE void mbarrier_arrive_expect_tx(Barrier& barrier, unsigned bytes, Where = Where::current()) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

// mapa.shared::cluster.u32 remote, address, rank; mbarrier.arrive.shared::cluster.b64 _, [remote];
// Arrives on the same barrier of the cluster's block `rank`.
FLASH3_DEVICE void mbarrier_arrive_cluster(Barrier& barrier, unsigned rank, Where = Where::current()) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}"
      :
      : "r"(shared_address(&barrier)), "r"(rank)
      : "memory");
}

// mapa.shared::cluster.u32 remote, address, rank; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];
// The same, and what this thread wrote to the other block's memory is visible to who waits with
// mbarrier_wait_parity_cluster. Dearer: to hand back a stage that TMA fills next, mbarrier_arrive_cluster is enough.
FLASH3_DEVICE void mbarrier_arrive_release_cluster(Barrier& barrier, unsigned rank, Where = Where::current()) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}"
      :
      : "r"(shared_address(&barrier)), "r"(rank)
      : "memory");
}

// mbarrier.try_wait.parity.shared::cta.b64 done, [address], parity;
// True once the phase of that parity has completed: before any phase has, parity 1 is true at once.
FLASH3_DEVICE bool mbarrier_try_wait_parity(Barrier& barrier, unsigned parity, Where = Where::current()) {
  unsigned done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// mbarrier.test_wait.parity.shared::cta.b64 done, [address], parity;  As try_wait, without suspending the thread.
FLASH3_DEVICE bool mbarrier_test_wait_parity(Barrier& barrier, unsigned parity, Where = Where::current()) {
  unsigned done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// Tries until the phase of that parity has completed. What happened before its arrivals is then visible here.
FLASH3_DEVICE void mbarrier_wait_parity(Barrier& barrier, unsigned parity, Where = Where::current()) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\n"
      "bra again;\n"
      "done:\n}"
      :
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
}

// The same, unless `done`: what an earlier mbarrier_test_wait_parity said of that phase, so that a thread which asked
// in good time spends none here.
FLASH3_DEVICE void mbarrier_wait_parity_unless(bool done, Barrier& barrier, unsigned parity, Where = Where::current()) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.u32 p, %2, 0;\n"
      "@p bra done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\n"
      "bra again;\n"
      "done:\n}"
      :
      : "r"(shared_address(&barrier)), "r"(parity), "r"(static_cast<unsigned>(done))
      : "memory");
}

// mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [address], parity;  until done.
// What other blocks wrote before mbarrier_arrive_release_cluster is visible, too.
FLASH3_DEVICE void mbarrier_wait_parity_cluster(Barrier& barrier, unsigned parity, Where = Where::current()) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
      "@p bra done;\n"
      "bra again;\n"
      "done:\n}"
      :
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
