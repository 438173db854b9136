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

#include "cpu/amx.h"
#include "cpu/backward-inl.h"
#include "cpu/forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace flash3::cpu {
namespace HWY_NAMESPACE {

// visit(kind) for the kind of products that a problem of this dtype is computed with.
template <class Visit>
auto with_kind([[maybe_unused]] DType dtype, const Visit& visit) {
#if FLASH3_CPU_TILES
  if (dtype == DType::bfloat16 && tiles_in_use()) return visit(TileKind());
#endif
#if FLASH3_CPU_PAIRS
  if (dtype == DType::bfloat16) return visit(PairKind());
#endif
  return visit(FloatKind());
}

void forward_on_target(const core::ForwardProblem& problem, int threads) {
  with_kind(problem.dtype, [&](auto kind) { run_forward<decltype(kind)>(problem, threads); });
}

void backward_on_target(const core::BackwardProblem& problem, int threads) {
  with_kind(problem.dtype, [&](auto kind) { run_backward<decltype(kind)>(problem, threads); });
}

KernelInfo info_on_target(DType dtype) {
  return with_kind(dtype, [](auto kind) {
    using Kind = decltype(kind);
    return KernelInfo{hwy::TargetName(HWY_TARGET),
                      Kind::products,
                      Kind::strip,
                      Kind::forward_block_keys,
                      Kind::backward_tile_strips * Kind::strip,
                      Kind::backward_block_keys};
  });
}

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
KernelInfo kernel_info(DType dtype) { return HWY_DYNAMIC_DISPATCH(info_on_target)(dtype); }

}  // namespace flash3::cpu
#endif
