// The toy kernels, compiled for Hopper: ptxas must report no spill and no serialised wgmma.
#include "hopper/toy_cluster.h"

namespace flash3::toy::inline FLASH3_MACHINE {
template __global__ void gemm_kernel<bfloat16>(FLASH3_GRID_CONSTANT(GemmParams));
template __global__ void gemm_kernel<float16>(FLASH3_GRID_CONSTANT(GemmParams));
template __global__ void cluster_gemm_kernel<bfloat16>(FLASH3_GRID_CONSTANT(GemmParams));
template __global__ void linear_kernel<bfloat16, 128>(FLASH3_GRID_CONSTANT(LinearParams));
template __global__ void linear_kernel<float16, 64>(FLASH3_GRID_CONSTANT(LinearParams));
template __global__ void linear_kernel<bfloat16, 256>(FLASH3_GRID_CONSTANT(LinearParams));
}  // namespace flash3::toy::inline FLASH3_MACHINE
