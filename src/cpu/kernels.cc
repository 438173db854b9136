// Compiles the passes for each instruction set and picks one at run time.
#include "cpu/kernels.h"

// Each target costs compile time: left out are those that add nothing for this engine to one that stays, and vectors
// whose length is unknown at compile time (SVE processors run NEON).
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_AVX10_2 | HWY_ALL_SVE | HWY_RVV | HWY_NEON_WITHOUT_AES)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once for each target
#include <hwy/highway.h>

#include "cpu/backward-inl.h"
#include "cpu/forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

void forward_on_target(const core::ForwardProblem& problem, int threads) {
#if FLASH3_CPU_PAIRS
  if (problem.dtype == DType::bfloat16) return run_forward<PairKind>(problem, threads);
#endif
  run_forward<FloatKind>(problem, threads);
}

void backward_on_target(const core::BackwardProblem& problem, int threads) {
#if FLASH3_CPU_PAIRS
  if (problem.dtype == DType::bfloat16) return run_backward<PairKind>(problem, threads);
#endif
  run_backward<FloatKind>(problem, threads);
}

KernelInfo info_on_target() { return {hwy::TargetName(HWY_TARGET), lanes, FLASH3_CPU_PAIRS != 0, strip}; }

}  // namespace HWY_NAMESPACE
}  // namespace flash3::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flash3::cpu {

HWY_EXPORT(forward_on_target);
HWY_EXPORT(backward_on_target);
HWY_EXPORT(info_on_target);

void run_forward_kernel(const core::ForwardProblem& problem, int threads) {
  HWY_DYNAMIC_DISPATCH(forward_on_target)(problem, threads);
}
void run_backward_kernel(const core::BackwardProblem& problem, int threads) {
  HWY_DYNAMIC_DISPATCH(backward_on_target)(problem, threads);
}
KernelInfo kernel_info() { return HWY_DYNAMIC_DISPATCH(info_on_target)(); }

}  // namespace flash3::cpu
#endif
