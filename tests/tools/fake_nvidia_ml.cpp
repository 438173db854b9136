// A libnvidia-ml.so.1 for tests: eighteen NVLinks on every GPU, which join all of them.
#include <cstring>

extern "C" {

int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }

int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  std::strncpy(text, "580.95.05", size);
  return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) {
  static int devices[2];
  *device = &devices[std::strcmp(id, "0000:01:00.0") == 0 ? 0 : 1];
  return 0;
}

int nvmlDeviceGetNvLinkState(void*, unsigned, unsigned* active) {
  *active = 1;
  return 0;
}

int nvmlDeviceGetP2PStatus(void*, void*, int capability, int* status) {
  *status = capability == 2 ? 0 : 1;
  return 0;
}

}  // extern "C"
