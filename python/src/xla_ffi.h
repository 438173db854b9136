// XLA's foreign-function interface as flash3 uses it: the C structures of a call. It is a stable binary
// interface (https://openxla.org/xla/custom_call); only what is used is declared, so that JAX is no build requirement.
// tests/python/test_jax.py holds the layouts against the header that the installed jaxlib carries.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flash3::python::xla {

struct Extension {
  std::size_t struct_size;
  std::int32_t type;
  Extension* next;
};
inline constexpr std::int32_t metadata_extension = 1;

struct Version {
  std::size_t struct_size;
  Extension* extensions;
  int major_version, minor_version;
};
inline constexpr int known_major_version = 0;

enum class ErrorCode : std::int32_t {
  invalid_argument = 3,
  resource_exhausted = 8,
  unimplemented = 12,
  internal = 13,
};

struct Error;  // XLA's

struct ErrorCreateArgs {
  std::size_t struct_size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};

struct StreamGetArgs {
  std::size_t struct_size;
  Extension* extensions;
  void* context;
  void* stream;  // set by XLA
};

// The beginning of XLA's table of functions.
struct Api {
  std::size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorCreateArgs*);
  const void* others[3];
  Error* (*get_stream)(StreamGetArgs*);
};

struct Metadata {
  std::size_t struct_size;
  Version version;
  std::uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

enum class Type : std::int32_t { s32 = 4, s64 = 5, f16 = 10, f32 = 11, f64 = 12, bf16 = 16, f8e4m3fn = 20 };

struct Buffer {
  std::size_t struct_size;
  Extension* extensions;
  Type dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;  // dense, row-major
};

// Arguments or results; every kind but buffers is beyond us.
struct Buffers {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  std::int32_t* kinds;
  Buffer** buffers;
};
inline constexpr std::int32_t buffer_kind = 1;

struct Span {
  const char* data;
  std::size_t size;
};

struct Scalar {
  Type dtype;
  void* value;
};

// Attributes, by rising name.
struct Attributes {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  std::int32_t* kinds;
  Span** names;
  void** values;
};
inline constexpr std::int32_t scalar_kind = 3;

struct CallFrame {
  std::size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  std::int32_t stage;
  Buffers arguments;
  Buffers results;
  Attributes attributes;
};
inline constexpr std::int32_t execute_stage = 3;

using Handler = Error*(CallFrame*);

}  // namespace flash3::python::xla
