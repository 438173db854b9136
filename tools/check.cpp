// flash3 check: the hardware checklist.
#include "flash3/check.h"

#include <memory>

#include "commands.h"
#include "json.h"
#include "terminal.h"

namespace flash3::tools {
namespace {

Json to_json(const std::vector<Capability>& capabilities) {
  Json list = Json::array();
  for (const Capability& c : capabilities) {
    list.push_back({{"name", c.name}, {"present", c.present}, {"detail", c.detail}});
  }
  return list;
}

Json to_json(const GpuInfo& gpu) {
  Json peers = Json::array();
  for (const GpuPeer& p : gpu.peers) peers.push_back({{"gpu", p.index}, {"access", p.access}, {"nvlink", p.nvlink}});
  return {{"index", gpu.index},
          {"name", gpu.name},
          {"compute_capability", fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor)},
          {"hopper", gpu.hopper},
          {"features", to_json(gpu.features)},
          {"memory_bytes", gpu.memory_bytes},
          {"multiprocessors", gpu.multiprocessors},
          {"clock_khz", gpu.clock_khz},
          {"l2_bytes", gpu.l2_bytes},
          {"shared_memory_per_multiprocessor", gpu.shared_memory_per_multiprocessor},
          {"shared_memory_per_block", gpu.shared_memory_per_block},
          {"nvlinks", gpu.nvlinks},
          {"peers", peers}};
}

Json to_json(const HardwareReport& report) {
  const CudaInfo& cuda = report.cuda;
  const CpuInfo& cpu = report.cpu;
  Json gpus = Json::array(), caches = Json::array();
  for (const GpuInfo& gpu : cuda.gpus) gpus.push_back(to_json(gpu));
  for (const CacheInfo& c : cpu.caches) {
    caches.push_back({{"level", c.level}, {"type", c.type}, {"bytes", c.bytes}, {"shared_by", c.shared_by}});
  }
  return {{"cuda",
           {{"driver", cuda.driver},
            {"problem", cuda.problem},
            {"driver_version", cuda.driver_version},
            {"cuda_version", cuda.cuda_version},
            {"runtime_version", cuda.runtime_version},
            {"gpus", gpus}}},
          {"cpu",
           {{"brand", cpu.brand},
            {"architecture", cpu.architecture},
            {"isa", to_json(cpu.isa)},
            {"cores", cpu.cores},
            {"usable_cores", cpu.usable_cores},
            {"quota", cpu.quota},
            {"clock_khz", cpu.clock_khz},
            {"caches", caches},
            {"memory_bytes", cpu.memory_bytes}}},
          {"engine", name_of(report.plan.engine)},
          {"plan", tools::to_json(report.plan)},
          {"missing", report.missing}};
}

}  // namespace

Run add_check(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  app.add_flag("--json", *json, "print JSON");
  app.footer(
      "Asks the CUDA driver, if there is one, and the CPU. Exits 0 whatever is found.\n\n"
      "Examples:\n"
      "  flash3 check\n"
      "  flash3 check --json | jq .engine");
  return [json] {
    const HardwareReport report = check_hardware();
    if (*json) {
      print(to_json(report));
    } else {
      fmt::print("{}", paint_marks(report.to_string()));
    }
    return 0;
  };
}

}  // namespace flash3::tools
