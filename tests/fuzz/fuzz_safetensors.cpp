// Fuzzes the reader of safetensors files: any bytes are refused with a sentence, or become tensors that tile the data.
#include "fuzz.h"
#include "io/error.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace flash3::tools;
  const auto file = std::as_bytes(std::span(data, size));
  Safetensors contents;
  try {
    contents = parse_safetensors(file);
  } catch (const InputError& error) {
    require(error.what()[0] != '\0', "an error without words");
    return 0;
  }
  std::size_t bytes = 0;
  for (const SafetensorsEntry& t : contents.tensors) {
    require(
        t.data.empty() || (t.data.data() >= file.data() && t.data.data() + t.data.size() <= file.data() + file.size()),
        "a tensor outside the file");
    require(contents.find(t.name) == &t, "a name that is not unique");
    if (const auto dtype = dtype_of_safetensors(t.dtype)) {
      require(static_cast<std::size_t>(count_elements(t.shape)) * flash3::size_of(*dtype) == t.data.size(),
              "a tensor whose bytes do not fit its shape");
    }
    bytes += t.data.size();
  }
  require(bytes <= size, "tensors that overlap");
  return 0;
}
