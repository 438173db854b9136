// Fuzzes the reader of .npy files: any bytes are refused with a sentence, or become one array that fits its data.
#include "fuzz.h"
#include "io/error.h"
#include "io/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace flash3::tools;
  const auto file = std::as_bytes(std::span(data, size));
  try {
    const NpyArray array = parse_npy(file);
    require(array.data.data() + array.data.size() == file.data() + file.size(), "data that do not end with the file");
    const flash3::DType dtype = dtype_of_npy(array.descr, flash3::DType::bfloat16);
    require(static_cast<std::size_t>(count_elements(array.shape)) * flash3::size_of(dtype) == array.data.size(),
            "data that do not fit the shape");
  } catch (const InputError& error) {
    require(error.what()[0] != '\0', "an error without words");
  }
  return 0;
}
