/// \file
/// The hardware checklist: what this machine has of what flash3 wants, and which engine will run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flash3/export.h"
#include "flash3/plan.h"

namespace flash3 {

/// One line of the checklist.
struct Capability {
  std::string name;    ///< "TMA", "AVX512-BF16"
  bool present;        ///< whether it can be used here
  std::string detail;  ///< what was found, or what it is for
};

/// Another GPU, as one GPU sees it.
struct GpuPeer {
  int index = 0;        ///< the other GPU
  bool access = false;  ///< its memory can be read and written directly
  bool nvlink = false;  ///< over NVLink
};

struct GpuInfo {
  int index = 0;
  std::string name;
  int compute_major = 0, compute_minor = 0;
  std::int64_t memory_bytes = 0;
  int multiprocessors = 0;
  int clock_khz = 0;  ///< 0 if unknown
  std::int64_t l2_bytes = 0;
  std::int64_t shared_memory_per_multiprocessor = 0, shared_memory_per_block = 0;
  int nvlinks = 0;                   ///< active links
  std::vector<GpuPeer> peers;        ///< the other GPUs
  std::vector<Capability> features;  ///< what the Hopper kernels stand on
  bool hopper = false;               ///< every one of the features is present
};

struct CudaInfo {
  bool driver = false;          ///< libcuda was found and started
  std::string problem;          ///< why not
  std::string driver_version;   ///< "580.95.05"; empty if unknown
  std::string cuda_version;     ///< newest CUDA that the driver knows, "13.0"
  std::string runtime_version;  ///< of libcudart, if one is installed; flash3 does not need it
  std::vector<GpuInfo> gpus;
};

struct CacheInfo {
  int level = 0;
  std::string type;  ///< "data", "instruction", "unified"
  std::int64_t bytes = 0;
  int shared_by = 0;  ///< logical cores that share one; 0 if unknown
};

struct CpuInfo {
  std::string brand;
  std::string architecture;     ///< "x86_64", "aarch64"
  std::vector<Capability> isa;  ///< vector extensions that both the CPU and the operating system offer
  int cores = 0;                ///< logical cores that are online
  int usable_cores = 0;         ///< of them, those that this process may run on
  double quota = 0;             ///< CPU time in cores that its control group grants; 0: no limit
  int clock_khz = 0;            ///< now, of the first core; 0 if unknown
  std::vector<CacheInfo> caches;
  std::int64_t memory_bytes = 0;
};

struct HardwareReport {
  CudaInfo cuda;
  CpuInfo cpu;
  /// What forward() would run on bfloat16 tensors in CPU memory.
  Plan plan;
  std::vector<std::string> missing;  ///< for a better engine, or for this one to be faster

  /// The checklist for a person, a line each, marked ✓ or ✗.
  FLASH3_EXPORT std::string to_string() const;
};

/// Asks the CUDA driver and the CPU. Needs neither: what is absent is reported, not thrown. Starts the CUDA driver if
/// there is one, but makes no context on a GPU.
FLASH3_EXPORT HardwareReport check_hardware();

}  // namespace flash3
