// The hardware report: what the GPUs and the CPU said, which engine follows from it, and how it reads.
#include <fmt/format.h>

#include "flash3/attention.h"
#include "machine/machine.h"

namespace flash3 {
namespace {

// A problem of ordinary size. A plan reads no tensor data, so that any distinct addresses do.
Plan plan_of_typical_problem() {
  constexpr std::int64_t batch = 1, seqlen = 4096, heads = 16, head_dim = 128;
  constexpr std::uintptr_t apart = std::uintptr_t{1} << 32;
  const auto tensor = [&](std::uintptr_t n) {
    return TensorView(reinterpret_cast<void*>(n * apart), DType::bfloat16, {batch, seqlen, heads, head_dim});
  };
  ForwardArgs args;
  args.query = tensor(1);
  args.key = tensor(2);
  args.value = tensor(3);
  args.out = tensor(4);
  try {
    return plan_forward(args);
  } catch (const Unsupported& error) {
    Plan none;
    none.reasons.push_back(error.what());
    return none;
  }
}

bool has(const std::vector<Capability>& capabilities, std::string_view name) {
  for (const Capability& c : capabilities) {
    if (c.name == name) return c.present;
  }
  return false;
}

std::vector<std::string> what_is_missing(const CudaInfo& cuda, const CpuInfo& cpu, const Plan& plan) {
  std::vector<std::string> missing;
  if (plan.engine == Engine::cuda) return missing;
  bool any_hopper = false;
  for (const GpuInfo& gpu : cuda.gpus) any_hopper = any_hopper || gpu.hopper;
  if (!any_hopper) {
    std::string found = cuda.driver ? cuda.problem : "no NVIDIA driver";
    for (const GpuInfo& gpu : cuda.gpus) {
      found += fmt::format("{}GPU {} is {}, compute capability {}.{}", found.empty() ? "" : "; ", gpu.index, gpu.name,
                           gpu.compute_major, gpu.compute_minor);
    }
    missing.push_back(fmt::format("for engine cuda: a Hopper GPU, H100 or H200 ({})", found));
  }
  for (const Refusal& refusal : plan.refused) {
    if (refusal.engine == Engine::cuda) missing.push_back(fmt::format("for engine cuda: {}", refusal.reason));
  }
  if (cpu.architecture == "x86_64") {
    if (!has(cpu.isa, "AVX2")) {
      missing.push_back("for a faster cpu engine: AVX2");
    } else if (!has(cpu.isa, "AVX-512")) {
      missing.push_back("for a faster cpu engine: AVX-512");
    } else if (!has(cpu.isa, "AVX512-BF16")) {
      missing.push_back("for faster bfloat16 on engine cpu: AVX512-BF16");
    }
  }
  if (cpu.usable_cores < cpu.cores) {
    missing.push_back(fmt::format("for a faster cpu engine: {} more cores (the process may use {} of {})",
                                  cpu.cores - cpu.usable_cores, cpu.usable_cores, cpu.cores));
  }
  if (cpu.quota > 0 && cpu.quota < cpu.usable_cores) {
    missing.push_back(fmt::format(
        "for a faster cpu engine: CPU time (the control group grants {:.3g} cores, the process may run on {})",
        cpu.quota, cpu.usable_cores));
  }
  return missing;
}

std::string bytes_text(std::int64_t bytes) {
  constexpr std::int64_t kib = 1 << 10, mib = 1 << 20, gib = 1 << 30;
  if (bytes >= gib) return fmt::format("{:.4g} GiB", static_cast<double>(bytes) / static_cast<double>(gib));
  if (bytes >= mib) return fmt::format("{:.4g} MiB", static_cast<double>(bytes) / static_cast<double>(mib));
  return fmt::format("{} KiB", bytes / kib);
}

std::string line(std::string_view name, std::string_view detail, std::string_view mark = " ") {
  return fmt::format("  {} {:<24} {}\n", mark, name, detail);
}

std::string checked(bool present, std::string_view name, std::string_view detail) {
  return line(name, detail, present ? "✓" : "✗");
}

std::string text_of(const GpuInfo& gpu) {
  std::string text = fmt::format("GPU {}    {}\n", gpu.index, gpu.name);
  for (const Capability& c : gpu.features) text += checked(c.present, c.name, c.detail);
  text += line("memory", bytes_text(gpu.memory_bytes));
  text += line("multiprocessors", fmt::format("{}, {:.4g} GHz, L2 {}", gpu.multiprocessors, gpu.clock_khz / 1e6,
                                              bytes_text(gpu.l2_bytes)));
  if (gpu.nvlinks > 0) text += line("NVLink", fmt::format("{} links active", gpu.nvlinks));
  for (const GpuPeer& peer : gpu.peers) {
    text += checked(peer.nvlink, fmt::format("NVLink to GPU {}", peer.index),
                    peer.access ? "direct access" : "no direct access");
  }
  return text;
}

std::string text_of(const CudaInfo& cuda) {
  std::string text = "CUDA\n";
  std::string versions;
  if (!cuda.driver_version.empty()) versions += cuda.driver_version + ", ";
  if (!cuda.cuda_version.empty()) versions += fmt::format("CUDA up to {}", cuda.cuda_version);
  text += checked(cuda.driver, "NVIDIA driver", cuda.driver ? versions : cuda.problem);
  if (cuda.driver && cuda.gpus.empty()) text += checked(false, "GPU", cuda.problem);
  text += line("CUDA runtime",
               (cuda.runtime_version.empty() ? "not found" : cuda.runtime_version) + " (flash3 does not need it)");
  for (const GpuInfo& gpu : cuda.gpus) text += text_of(gpu);
  return text;
}

std::string text_of(const CpuInfo& cpu) {
  std::string text = fmt::format("CPU      {}, {}\n", cpu.brand.empty() ? "unknown" : cpu.brand, cpu.architecture);
  for (const Capability& c : cpu.isa) text += checked(c.present, c.name, c.detail);
  std::string cores = fmt::format("{} of {} may be used", cpu.usable_cores, cpu.cores);
  if (cpu.quota > 0) cores += fmt::format(", CPU time of {:.3g} granted", cpu.quota);
  if (cpu.clock_khz > 0) cores += fmt::format(", {:.4g} GHz now", cpu.clock_khz / 1e6);
  text += line("cores", cores);
  std::string caches;
  for (const CacheInfo& cache : cpu.caches) {
    if (cache.type == "instruction") continue;
    caches += fmt::format("{}L{} {}{}", caches.empty() ? "" : ", ", cache.level, bytes_text(cache.bytes),
                          cache.shared_by > 1 ? fmt::format(" for {} cores", cache.shared_by) : "");
  }
  if (!caches.empty()) text += line("caches", caches);
  return text + line("memory", bytes_text(cpu.memory_bytes));
}

}  // namespace

HardwareReport check_hardware() {
  HardwareReport report;
  report.cuda = machine::ask_cuda();
  report.cpu = machine::ask_cpu();
  report.plan = plan_of_typical_problem();
  report.missing = what_is_missing(report.cuda, report.cpu, report.plan);
  return report;
}

std::string HardwareReport::to_string() const {
  std::string text = text_of(cuda) + text_of(cpu) + "Engine\n";
  const bool any = plan.engine != Engine::automatic;
  text += checked(any, any ? name_of(plan.engine) : "none", any ? plan.kernel : plan.reasons.front());
  if (plan.num_threads > 0) text += line("threads", fmt::format("{}", plan.num_threads));
  for (const std::string& m : missing) text += line("missing", m, "·");
  return text;
}

}  // namespace flash3
