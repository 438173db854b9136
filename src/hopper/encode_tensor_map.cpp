// Owns the call to the CUDA driver that encodes a tensor map, found at run time: nothing links to libcuda.
#include <cuda.h>
#include <dlfcn.h>

#include <cstring>

#include "hopper/make_tensor_map.h"

namespace flash3::hopper::inline FLASH3_MACHINE {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  return driver == nullptr ? nullptr : reinterpret_cast<Encode>(dlsym(driver, "cuTensorMapEncodeTiled"));
}

CUtensorMapDataType data_type(ElementType type) {
  switch (type) {
    case ElementType::bfloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case ElementType::float16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case ElementType::float32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case ElementType::uint8:
      break;
  }
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

CUtensorMapSwizzle swizzle_mode(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::b128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    case Swizzle::b64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::b32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::none:
      break;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace

std::string encode_tensor_map(const TensorMapShape& shape, TensorMap& map) {
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
  static const Encode encode = find_encode();
  if (encode == nullptr) return "tensor map: the CUDA driver (libcuda.so.1) has no cuTensorMapEncodeTiled";

  cuuint64_t sizes[5], strides[4];
  cuuint32_t box[5], element_strides[5];
  for (int d = 0; d < shape.rank; ++d) {
    sizes[d] = static_cast<cuuint64_t>(shape.sizes[d]);
    box[d] = static_cast<cuuint32_t>(shape.box[d]);
    element_strides[d] = 1;
    if (d > 0) strides[d - 1] = static_cast<cuuint64_t>(shape.stride_bytes[d]);
  }
  CUtensorMap encoded;
  const CUresult result =
      encode(&encoded, data_type(shape.type), static_cast<cuuint32_t>(shape.rank), const_cast<void*>(shape.base), sizes,
             strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_mode(shape.swizzle),
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return "tensor map: the driver refused it with error " + std::to_string(result);
  std::memcpy(&map, &encoded, sizeof map);
  return {};
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
