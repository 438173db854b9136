// Linux keeps the tile registers from a process until it asks for them: they make a thread's saved state 8 KB larger.
#include "cpu/amx.h"

#include <atomic>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace flash3::cpu {
namespace {

std::atomic<bool> wanted{true};

bool ask_for_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
  constexpr long arch_request_permission = 0x1023, tile_data = 18;  // <asm/prctl.h>, where it is new enough
  return syscall(SYS_arch_prctl, arch_request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace

bool tiles_granted() {
  static const bool granted = ask_for_tiles();
  return granted;
}

bool use_tiles(bool use) { return wanted.exchange(use, std::memory_order_relaxed); }

bool tiles_in_use() { return wanted.load(std::memory_order_relaxed) && tiles_granted(); }

}  // namespace flash3::cpu
