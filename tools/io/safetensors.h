// The safetensors format: a JSON header that says where each tensor's bytes are, then the bytes.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "io/tensor.h"

namespace flash3::tools {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // in the file's words: "BF16"
  Shape shape;
  std::span<const std::byte> data;
};

struct Safetensors {
  std::vector<SafetensorsEntry> tensors;  // in the order of their bytes
  std::map<std::string, std::string> metadata;

  const SafetensorsEntry* find(std::string_view name) const;
};

// The largest header that is read. Those of the largest models have some megabytes.
inline constexpr std::size_t max_safetensors_header = std::size_t{16} << 20;

// Reads the header and checks all of it: every byte of the data belongs to exactly one tensor, and as many as its shape
// and dtype say. The result points into `file`. Throws InputError; the text does not name the file.
Safetensors parse_safetensors(std::span<const std::byte> file);

// The flash3 dtype of a safetensors one, if there is one.
std::optional<DType> dtype_of_safetensors(std::string_view dtype);

struct NamedTensor {
  std::string name;
  DType dtype;
  Shape shape;
  std::span<const std::byte> data;  // dense
};

void write_safetensors(AtomicFile& file, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace flash3::tools
