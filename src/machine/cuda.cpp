// Asks the CUDA driver what GPUs there are. Nothing of CUDA is needed to build: the few entry points are declared here
// and looked up at run time.
#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string_view>

#include "machine/machine.h"

namespace flash3::machine {
namespace {

// A shared library that may be absent.
class Library {
 public:
  explicit Library(std::initializer_list<const char*> names) {
    for (const char* name : names) {
      handle_.reset(dlopen(name, RTLD_NOW | RTLD_LOCAL));
      if (handle_) return;
      if (error_.empty()) error_ = dlerror();
    }
  }

  explicit operator bool() const { return handle_ != nullptr; }
  const std::string& error() const { return error_; }

  // Looks an entry point up; leaves `function` null and says false if the library lacks it.
  template <class Function>
  bool find(Function*& function, const char* name) const {
    function = handle_ ? reinterpret_cast<Function*>(dlsym(handle_.get(), name)) : nullptr;
    return function != nullptr;
  }

 private:
  // The library stays: drivers start threads that do not outlive being unloaded.
  struct Keep {
    void operator()(void*) const {}
  };
  std::unique_ptr<void, Keep> handle_;
  std::string error_;
};

// CUdevice_attribute and CUdevice_P2PAttribute of the driver's ABI.
enum Attribute : int {
  clock_rate = 13,
  multiprocessor_count = 16,
  l2_cache_size = 38,
  compute_capability_major = 75,
  compute_capability_minor = 76,
  max_shared_memory_per_multiprocessor = 81,
  max_registers_per_multiprocessor = 82,
  max_shared_memory_per_block_optin = 97,
  cluster_launch = 120,
  tensor_map_access_supported = 127,
};
enum PeerAttribute : int { access_supported = 2, native_atomic_supported = 3 };

// The driver, as cuda.h declares it: results are CUresult, 0 for success.
struct Driver {
  int (*init)(unsigned) = nullptr;
  int (*driver_get_version)(int*) = nullptr;
  int (*get_error_string)(int, const char**) = nullptr;
  int (*device_get_count)(int*) = nullptr;
  int (*device_get)(int*, int) = nullptr;
  int (*device_get_name)(char*, int, int) = nullptr;
  int (*device_total_memory)(std::size_t*, int) = nullptr;
  int (*device_get_attribute)(int*, int, int) = nullptr;
  int (*device_get_pci_bus_id)(char*, int, int) = nullptr;
  int (*device_get_peer_attribute)(int*, int, int, int) = nullptr;

  bool find_all(const Library& library) {
    return library.find(init, "cuInit") && library.find(driver_get_version, "cuDriverGetVersion") &&
           library.find(get_error_string, "cuGetErrorString") && library.find(device_get_count, "cuDeviceGetCount") &&
           library.find(device_get, "cuDeviceGet") && library.find(device_get_name, "cuDeviceGetName") &&
           library.find(device_total_memory, "cuDeviceTotalMem_v2") &&
           library.find(device_get_attribute, "cuDeviceGetAttribute") &&
           library.find(device_get_pci_bus_id, "cuDeviceGetPCIBusId") &&
           library.find(device_get_peer_attribute, "cuDeviceGetP2PAttribute");
  }

  std::string error_text(int result) const {
    const char* text = nullptr;
    if (get_error_string(result, &text) == 0 && text != nullptr) return text;
    return fmt::format("CUDA error {}", result);
  }

  int attribute(Attribute which, int device) const {
    int value = 0;
    return device_get_attribute(&value, which, device) == 0 ? value : 0;
  }

  bool peer_attribute(PeerAttribute which, int from, int to) const {
    int value = 0;
    return device_get_peer_attribute(&value, which, from, to) == 0 && value != 0;
  }
};

// NVML, as nvml.h declares it: the driver's name for itself, and its links.
class Nvml {
 public:
  Nvml() : library_{"libnvidia-ml.so.1"} {
    int (*init)() = nullptr;
    started_ = library_.find(init, "nvmlInit_v2") && init() == 0;
    library_.find(driver_version_, "nvmlSystemGetDriverVersion");
    library_.find(handle_by_pci_bus_id_, "nvmlDeviceGetHandleByPciBusId_v2");
    library_.find(nvlink_state_, "nvmlDeviceGetNvLinkState");
    library_.find(p2p_status_, "nvmlDeviceGetP2PStatus");
  }
  ~Nvml() {
    int (*shutdown)() = nullptr;
    if (started_ && library_.find(shutdown, "nvmlShutdown")) shutdown();
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::string driver_version() const {
    std::array<char, 81> text{};
    if (!started_ || !driver_version_ || driver_version_(text.data(), text.size() - 1) != 0) return "";
    return text.data();
  }

  void* device(const char* pci_bus_id) const {
    void* handle = nullptr;
    if (!started_ || !handle_by_pci_bus_id_ || handle_by_pci_bus_id_(pci_bus_id, &handle) != 0) return nullptr;
    return handle;
  }

  int active_links(void* device) const {
    constexpr unsigned max_links = 18;
    if (!device || !nvlink_state_) return 0;
    int active = 0;
    for (unsigned link = 0; link < max_links; ++link) {
      unsigned state = 0;
      active += nvlink_state_(device, link, &state) == 0 && state == 1;
    }
    return active;
  }

  bool joined_by_nvlink(void* device, void* other) const {
    constexpr int p2p_nvlink = 2;
    int status = -1;
    return device && other && p2p_status_ && p2p_status_(device, other, p2p_nvlink, &status) == 0 && status == 0;
  }

 private:
  Library library_;
  bool started_ = false;
  int (*driver_version_)(char*, unsigned) = nullptr;
  int (*handle_by_pci_bus_id_)(const char*, void**) = nullptr;
  int (*nvlink_state_)(void*, unsigned, unsigned*) = nullptr;
  int (*p2p_status_)(void*, void*, int, int*) = nullptr;
};

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string runtime_version() {
  const Library library{"libcudart.so", "libcudart.so.13", "libcudart.so.12"};
  int (*get_version)(int*) = nullptr;
  int version = 0;
  if (!library.find(get_version, "cudaRuntimeGetVersion") || get_version(&version) != 0) return "";
  return version_text(version);
}

// What the Hopper kernels stand on. The driver tells of tensor maps, clusters and shared memory; wgmma and setmaxnreg
// belong to the architecture-specific part of 9.0 (sm_90a), which no other compute capability has as a whole.
std::vector<Capability> hopper_features(const GpuInfo& gpu, const Driver& driver, int device) {
  constexpr std::int64_t kib = 1024;
  const int capability = 10 * gpu.compute_major + gpu.compute_minor;
  const auto kilobytes = [](std::int64_t have, std::int64_t want) {
    return fmt::format("{} KiB, wanted are {}", have / kib, want / kib);
  };
  const int registers = driver.attribute(max_registers_per_multiprocessor, device);
  return {
      {"compute capability 9.0", capability == 90, fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor)},
      {"wgmma", capability == 90, "asynchronous tensor cores"},
      {"TMA", driver.attribute(tensor_map_access_supported, device) != 0, "tensor copies by descriptor"},
      {"thread block clusters", driver.attribute(cluster_launch, device) != 0, "copies shared between blocks"},
      {"FP8 e4m3", capability >= 89, "8-bit matrix products"},
      {"setmaxnreg", capability == 90 && registers >= 65536,
       fmt::format("register reallocation between warpgroups, {} registers an SM", registers)},
      {"shared memory per SM", gpu.shared_memory_per_multiprocessor >= 228 * kib,
       kilobytes(gpu.shared_memory_per_multiprocessor, 228 * kib)},
      {"shared memory per block", gpu.shared_memory_per_block >= 227 * kib,
       kilobytes(gpu.shared_memory_per_block, 227 * kib)},
  };
}

GpuInfo ask_gpu(int index, int device, const Driver& driver, const Nvml& nvml) {
  GpuInfo gpu;
  gpu.index = index;
  std::array<char, 256> name{};
  if (driver.device_get_name(name.data(), static_cast<int>(name.size()) - 1, device) == 0) gpu.name = name.data();
  std::size_t memory = 0;
  if (driver.device_total_memory(&memory, device) == 0) gpu.memory_bytes = static_cast<std::int64_t>(memory);
  gpu.compute_major = driver.attribute(compute_capability_major, device);
  gpu.compute_minor = driver.attribute(compute_capability_minor, device);
  gpu.multiprocessors = driver.attribute(multiprocessor_count, device);
  gpu.clock_khz = driver.attribute(clock_rate, device);
  gpu.l2_bytes = driver.attribute(l2_cache_size, device);
  gpu.shared_memory_per_multiprocessor = driver.attribute(max_shared_memory_per_multiprocessor, device);
  gpu.shared_memory_per_block = driver.attribute(max_shared_memory_per_block_optin, device);
  gpu.features = hopper_features(gpu, driver, device);
  gpu.hopper = true;
  for (const Capability& feature : gpu.features) gpu.hopper = gpu.hopper && feature.present;

  const auto nvml_device = [&](int of) -> void* {
    std::array<char, 64> bus_id{};
    if (driver.device_get_pci_bus_id(bus_id.data(), static_cast<int>(bus_id.size()) - 1, of) != 0) return nullptr;
    return nvml.device(bus_id.data());
  };
  gpu.nvlinks = nvml.active_links(nvml_device(device));
  int count = 0;
  driver.device_get_count(&count);
  for (int other = 0; other < count; ++other) {
    int peer = 0;
    if (other == index || driver.device_get(&peer, other) != 0) continue;
    const bool access = driver.peer_attribute(access_supported, device, peer);
    // Without NVML: no bus but NVLink carries every atomic operation.
    const bool nvlink = nvml.joined_by_nvlink(nvml_device(device), nvml_device(peer)) ||
                        driver.peer_attribute(native_atomic_supported, device, peer);
    gpu.peers.push_back({other, access, nvlink});
  }
  return gpu;
}

}  // namespace

CudaInfo ask_cuda() {
  CudaInfo cuda;
  cuda.runtime_version = runtime_version();
  const Library library{"libcuda.so.1"};
  if (!library) {
    cuda.problem = library.error();
    return cuda;
  }
  Driver driver;
  if (!driver.find_all(library)) {
    cuda.problem = "libcuda.so.1 lacks entry points that flash3 asks: the driver is too old, or not NVIDIA's";
    return cuda;
  }
  int version = 0;
  if (driver.driver_get_version(&version) == 0) cuda.cuda_version = version_text(version);
  const Nvml nvml;
  cuda.driver_version = nvml.driver_version();
  if (const int result = driver.init(0); result != 0) {
    cuda.problem = fmt::format("the NVIDIA driver does not start: {}", driver.error_text(result));
    return cuda;
  }
  cuda.driver = true;
  int count = 0;
  if (const int result = driver.device_get_count(&count); result != 0 || count == 0) {
    cuda.problem = result != 0 ? driver.error_text(result) : "the driver finds no GPU";
    return cuda;
  }
  for (int index = 0; index < count; ++index) {
    int device = 0;
    if (driver.device_get(&device, index) == 0) cuda.gpus.push_back(ask_gpu(index, device, driver, nvml));
  }
  return cuda;
}

}  // namespace flash3::machine
