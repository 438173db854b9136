// Asks the CPU (cpuid, or the kernel where there is none), the kernel and the control group.
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string_view>

#include "machine/machine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace flash3::machine {
namespace {

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros for a leaf that the CPU lacks
  return r;
}

// Register state that the operating system saves (XCR0): an extension without it cannot be used.
std::uint64_t saved_state() {
  constexpr unsigned osxsave = 1u << 27;
  if (!(cpuid(1).ecx & osxsave)) return 0;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

std::vector<Capability> instruction_sets() {
  const Registers leaf1 = cpuid(1), leaf7 = cpuid(7), leaf7_1 = cpuid(7, 1);
  const std::uint64_t state = saved_state();
  const auto bit = [](unsigned word, int n) { return (word >> n & 1u) != 0; };
  const auto saves = [state](std::uint64_t wanted) { return (state & wanted) == wanted; };
  constexpr std::uint64_t ymm_state = 0x6, zmm_state = 0xe6, tile_state = 0x60000;
  const bool ymm = saves(ymm_state), zmm = saves(zmm_state), tiles = saves(tile_state);
  const bool avx512 = zmm && bit(leaf7.ebx, 16) && bit(leaf7.ebx, 17) && bit(leaf7.ebx, 30) && bit(leaf7.ebx, 31);
  const bool amx = tiles && bit(leaf7.edx, 24);
  return {
      {"AVX2", ymm && bit(leaf7.ebx, 5) && bit(leaf1.ecx, 12), "256-bit vectors, fused multiply-add"},
      {"F16C", ymm && bit(leaf1.ecx, 29), "float16 conversions"},
      {"AVX-512", avx512, "512-bit vectors (F, BW, DQ, VL)"},
      {"AVX512-BF16", avx512 && bit(leaf7_1.eax, 5), "bfloat16 products, two a lane"},
      {"AVX512-FP16", avx512 && bit(leaf7.edx, 23), "float16 arithmetic"},
      {"AMX-BF16", amx && bit(leaf7.edx, 22), "bfloat16 matrix products"},
      {"AMX-FP16", amx && bit(leaf7_1.eax, 21), "float16 matrix products"},
  };
}

std::string brand() {
  if (cpuid(0x80000000).eax < 0x80000004) return "";
  std::string text;
  for (unsigned leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
    const Registers r = cpuid(leaf);
    for (unsigned word : {r.eax, r.ebx, r.ecx, r.edx}) {
      for (int shift = 0; shift < 32; shift += 8) text += static_cast<char>(word >> shift & 0xff);
    }
  }
  text.erase(std::find(text.begin(), text.end(), '\0'), text.end());
  return text;
}

#elif defined(__aarch64__)

std::vector<Capability> instruction_sets() {
  const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
  const auto has = [](unsigned long word, unsigned long mask) { return (word & mask) != 0; };
  return {
      {"NEON", has(hwcap, HWCAP_ASIMD), "128-bit vectors"},
      {"FP16", has(hwcap, HWCAP_ASIMDHP), "float16 arithmetic"},
      {"SVE", has(hwcap, HWCAP_SVE), "scalable vectors"},
      {"SVE2", has(hwcap2, HWCAP2_SVE2), "scalable vectors, second version"},
      {"BF16", has(hwcap2, HWCAP2_BF16), "bfloat16 products"},
  };
}

std::string brand() { return ""; }

#else

std::vector<Capability> instruction_sets() { return {}; }
std::string brand() { return ""; }

#endif

std::string trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\n");
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(" \t\n") - first + 1));
}

// The first line of a file, empty if it cannot be read.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return trimmed(line);
}

// The first value of a key in /proc/cpuinfo and its like ("key : value").
std::string lookup(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (colon != std::string::npos && trimmed(std::string_view(line).substr(0, colon)) == key) {
      return trimmed(std::string_view(line).substr(colon + 1));
    }
  }
  return "";
}

// Cores that the process may run on.
int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

// CPU time that the control group grants, in cores: "quota period" in microseconds, or "max period". The first version
// of control groups has a file for each.
double cpu_quota() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (v2) return v2 >> quota >> period && quota > 0 && period > 0 ? quota / period : 0;
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  return v1_quota >> quota && v1_period >> period && quota > 0 && period > 0 ? quota / period : 0;
}

// Cores in a list as the kernel writes it: "0-3,8-11".
int count_cores(const std::string& list) {
  int count = 0;
  for (std::size_t at = 0; at < list.size();) {
    const std::size_t end = std::min(list.find(',', at), list.size());
    const std::string part = list.substr(at, end - at);
    const std::size_t dash = part.find('-');
    count += dash == std::string::npos ? 1 : std::atoi(part.c_str() + dash + 1) - std::atoi(part.c_str()) + 1;
    at = end + 1;
  }
  return count;
}

std::vector<CacheInfo> caches() {
  std::vector<CacheInfo> found;
  for (int index = 0; index < 16; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    const std::string size = first_line(folder + "size");
    if (size.empty()) break;
    CacheInfo cache;
    cache.level = std::atoi(first_line(folder + "level").c_str());
    cache.type = first_line(folder + "type");
    std::transform(cache.type.begin(), cache.type.end(), cache.type.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    const std::int64_t unit = size.back() == 'K' ? 1 << 10 : size.back() == 'M' ? 1 << 20 : 1;
    cache.bytes = std::atoll(size.c_str()) * unit;
    cache.shared_by = count_cores(first_line(folder + "shared_cpu_list"));
    found.push_back(cache);
  }
  return found;
}

int clock_khz() {
  const std::string now = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq");
  if (!now.empty()) return std::atoi(now.c_str());
  return static_cast<int>(std::atof(lookup("/proc/cpuinfo", "cpu MHz").c_str()) * 1000);
}

}  // namespace

CpuInfo ask_cpu() {
  CpuInfo cpu;
  cpu.brand = trimmed(brand());
  for (const char* key : {"model name", "Model", "Hardware", "CPU implementer"}) {
    if (cpu.brand.empty()) cpu.brand = lookup("/proc/cpuinfo", key);
  }
  utsname system{};
  if (uname(&system) == 0) cpu.architecture = system.machine;
  cpu.isa = instruction_sets();
  cpu.cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  cpu.usable_cores = usable_cores();
  cpu.quota = cpu_quota();
  cpu.clock_khz = clock_khz();
  cpu.caches = caches();
  cpu.memory_bytes = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return cpu;
}

}  // namespace flash3::machine
