// DLPack's C interface as flash3 reads it: versions 0 and 1 of a managed tensor, and the exchange API that a tensor
// class carries as `__dlpack_c_exchange_api__` (https://dmlc.github.io/dlpack/latest). Layouts and the tensor's names
// are the standard's; only what is used is declared.
#pragma once

#include <cstdint>

namespace flash3::python::dlpack {

struct Device {
  std::int32_t device_type;
  std::int32_t device_id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

// What the capsule "dltensor" holds.
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Version {
  std::uint32_t major, minor;
};

inline constexpr std::uint64_t read_only_flag = 1;

// What the capsule "dltensor_versioned" holds.
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// What the capsule "dlpack_exchange_api" holds: functions of a tensor class, callable without Python's call protocol.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocate;
  int (*export_managed)(void* object, ManagedVersioned** out);
  void* to_object;
  // Fills a view that lives as long as the object does; may be null.
  int (*borrow)(void* object, Tensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // namespace flash3::python::dlpack
