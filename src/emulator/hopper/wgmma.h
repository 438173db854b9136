// Owns wgmma on the emulator: the 128 threads meet, and the product happens at a moment of the scheduler's choice.
#pragma once

#include "hopper/descriptor.h"
#include "hopper/fragment.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline void wgmma_fence(Where = Where::current()) { emulator::wgmma_fence(); }
inline void wgmma_commit_group(Where where = Where::current()) { emulator::commit_products(where); }

template <int N>
void pin(Accumulator<N>& fragment, Where where = Where::current()) {
  fragment.state.name(where);
}
template <class T, int K>
void pin(Operand<T, K>& fragment, Where where = Where::current()) {
  fragment.state.name(where);
}

// One for each number of fragments: a defaulted argument cannot follow a pack.
template <int pending>
void wgmma_wait_group(Where where = Where::current()) {
  emulator::wait_for_products(pending, where);
}
template <int pending, class A>
void wgmma_wait_group(A& a, Where where = Where::current()) {
  emulator::wait_for_products(pending, where);
  pin(a, where);
}
template <int pending, class A, class B>
void wgmma_wait_group(A& a, B& b, Where where = Where::current()) {
  emulator::wait_for_products(pending, where);
  pin(a, where);
  pin(b, where);
}
template <int pending, class A, class B, class C>
void wgmma_wait_group(A& a, B& b, C& c, Where where = Where::current()) {
  emulator::wait_for_products(pending, where);
  pin(a, where);
  pin(b, where);
  pin(c, where);
}
template <int pending, class A, class B, class C, class D>
void wgmma_wait_group(A& a, B& b, C& c, D& d, Where where = Where::current()) {
  emulator::wait_for_products(pending, where);
  pin(a, where);
  pin(b, where);
  pin(c, where);
  pin(d, where);
}

template <class T>
constexpr emulator::MatrixType matrix_type() {
  return is_bfloat16<T> ? emulator::MatrixType::bfloat16 : emulator::MatrixType::float16;
}

template <int N>
constexpr bool is_wgmma_width = N == 8 || (N % 16 == 0 && N >= 16 && N <= 256);

template <class T, Major a_major = Major::k, Major b_major = Major::k, int N>
void wgmma(Accumulator<N>& d, Descriptor a, Descriptor b, bool accumulate, Where where = Where::current()) {
  static_assert(is_wgmma_width<N>);
  emulator::issue_product({N, matrix_type<T>(), a_major == Major::mn, b_major == Major::mn, accumulate, a, b, d.value,
                           &d.state, nullptr, nullptr, where});
}

template <Major b_major = Major::k, class T, int K, int N>
void wgmma(Accumulator<N>& d, Operand<T, K>& a, int k, Descriptor b, bool accumulate, Where where = Where::current()) {
  static_assert(is_wgmma_width<N>);
  if (k < 0 || 16 * k + 16 > K) emulator::index_out_of_range(k, K / 16, where);
  emulator::issue_product({N, matrix_type<T>(), false, b_major == Major::mn, accumulate, 0, b, d.value, &d.state,
                           a.word + 4 * k, &a.state, where});
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
