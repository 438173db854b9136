// A libcuda.so.1 for tests: the entry points that flash3 asks, answering as the environment variable FAKE_GPU says.
//   h100   two H100
//   a100   one A100
//   none   a driver without a GPU
//   broken a driver that does not start
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace {

std::string_view machine() {
  const char* name = std::getenv("FAKE_GPU");
  return name ? name : "none";
}

bool is_hopper() { return machine() == "h100"; }

int copy_text(const char* text, char* to, int size) {
  std::strncpy(to, text, static_cast<std::size_t>(size));
  return 0;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return machine() == "broken" ? 803 : machine() == "none" ? 100 : 0; }

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

int cuGetErrorString(int error, const char** text) {
  *text = error == 803 ? "system has unsupported display driver / cuda driver combination"
                       : "no CUDA-capable device is detected";
  return 0;
}

int cuDeviceGetCount(int* count) {
  *count = is_hopper() ? 2 : machine() == "a100" ? 1 : 0;
  return 0;
}

int cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}

int cuDeviceGetName(char* name, int size, int) {
  return copy_text(is_hopper() ? "NVIDIA H100 80GB HBM3" : "NVIDIA A100-SXM4-80GB", name, size);
}

int cuDeviceTotalMem_v2(std::size_t* bytes, int) {
  *bytes = std::size_t{80} << 30;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 13:
      *value = is_hopper() ? 1980000 : 1410000;
      return 0;
    case 16:
      *value = is_hopper() ? 132 : 108;
      return 0;
    case 38:
      *value = (is_hopper() ? 50 : 40) << 20;
      return 0;
    case 75:
      *value = is_hopper() ? 9 : 8;
      return 0;
    case 76:
      *value = 0;
      return 0;
    case 81:
      *value = (is_hopper() ? 228 : 164) << 10;
      return 0;
    case 82:
      *value = 65536;
      return 0;
    case 97:
      *value = (is_hopper() ? 227 : 163) << 10;
      return 0;
    case 120:
    case 127:
      *value = is_hopper() ? 1 : 0;
      return 0;
    default:
      return 1;
  }
}

int cuDeviceGetPCIBusId(char* id, int size, int device) {
  return copy_text(device == 0 ? "0000:01:00.0" : "0000:02:00.0", id, size);
}

int cuDeviceGetP2PAttribute(int* value, int attribute, int, int) {
  *value = attribute == 2 ? 1 : 0;  // direct access, but NVLink is for NVML to tell
  return 0;
}

}  // extern "C"
