// NumPy's .npy format: one array behind a short header in Python's notation.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "io/file.h"
#include "io/tensor.h"

namespace flash3::tools {

struct NpyArray {
  std::string descr;  // "<f4"
  Shape shape;
  std::span<const std::byte> data;
};

// Reads versions 1 to 3 and checks that the data are as many bytes as the header says. Refused: column-major and
// big-endian arrays, structured types and objects. The result points into `file`. Throws InputError; the text does not
// name the file.
NpyArray parse_npy(std::span<const std::byte> file);

// The dtype of an array. NumPy has no bfloat16 and writes its bytes as "<V2": those need `given`, the dtype that the
// user says they are. Throws InputError.
DType dtype_of_npy(std::string_view descr, std::optional<DType> given);

void write_npy(AtomicFile& file, DType dtype, std::span<const std::int64_t> shape, std::span<const std::byte> data);

}  // namespace flash3::tools
