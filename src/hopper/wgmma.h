// Owns wgmma: the asynchronous matrix product of a warpgroup, 64 x N x 16 an instruction, accumulating in registers.
#pragma once

#include "hopper/descriptor.h"
#include "hopper/fragment.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// wgmma.fence.sync.aligned;  Before the first wgmma, and after ordinary code touched an accumulator or operand that the
// next wgmma uses.
FLASH3_DEVICE void wgmma_fence(Where = Where::current()) { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }

// wgmma.commit_group.sync.aligned;  Closes the warpgroup's group of wgmma.
FLASH3_DEVICE void wgmma_commit_group(Where = Where::current()) {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

// Tells the compiler that the fragment's registers change here, so that no use of them moves across.
template <int N>
FLASH3_DEVICE void pin(Accumulator<N>& fragment) {
  FLASH3_UNROLL
  for (int i = 0; i < N / 2; ++i) asm volatile("" : "+f"(fragment.value[i]) : : "memory");
}
template <class T, int K>
FLASH3_DEVICE void pin(Operand<T, K>& fragment) {
  FLASH3_UNROLL
  for (int i = 0; i < K / 4; ++i) asm volatile("" : "+r"(fragment.word[i]) : : "memory");
}

// wgmma.wait_group.sync.aligned pending;  Waits for all but the last `pending` groups. Name every fragment that may be
// touched from here on.
template <int pending, class... Fragments>
FLASH3_DEVICE void wgmma_wait_group(Fragments&... finished) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(pending) : "memory");
  (pin(finished), ...);
}

// The instruction's text counts its operands: d first, N / 2 of them, then a, b and the flags. These spell the counts.
#define FLASH3_TEN(tens)                                                                                               \
  "%" tens "0, %" tens "1, %" tens "2, %" tens "3, %" tens "4, %" tens "5, %" tens "6, %" tens "7, %" tens "8, %" tens \
  "9"
#define FLASH3_NAMES_4 "%0, %1, %2, %3"
#define FLASH3_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FLASH3_NAMES_16 \
  FLASH3_TEN("")        \
  ", "                  \
  "%10, %11, %12, %13, %14, %15"
#define FLASH3_NAMES_24 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " "%20, %21, %22, %23"
#define FLASH3_NAMES_32 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " "%30, %31"
#define FLASH3_NAMES_40 FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3")
#define FLASH3_NAMES_48 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define FLASH3_NAMES_56 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  "%50, %51, %52, %53, %54, %55"
#define FLASH3_NAMES_64 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " "%60, %61, %62, %63"
#define FLASH3_NAMES_72 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " FLASH3_TEN("6") ", " "%70, %71"
#define FLASH3_NAMES_80                                                                                \
  FLASH3_TEN("")                                                                                       \
  ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " FLASH3_TEN( \
      "5") ", " FLASH3_TEN("6") ", " FLASH3_TEN("7")
#define FLASH3_NAMES_88 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " FLASH3_TEN("6") ", " FLASH3_TEN("7") ", " "%80, %81, %82, %83, %84, %85, %86, %87"
#define FLASH3_NAMES_96 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " FLASH3_TEN("6") ", " FLASH3_TEN("7") ", " FLASH3_TEN("8") ", " \
  "%90, %91, %92, %93, %94, %95"
#define FLASH3_NAMES_104 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " FLASH3_TEN("6") ", " FLASH3_TEN("7") ", " FLASH3_TEN("8") ", " FLASH3_TEN("9") ", " \
  "%100, %101, %102, %103"
#define FLASH3_NAMES_112 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " FLASH3_TEN("6") ", " FLASH3_TEN("7") ", " FLASH3_TEN("8") ", " FLASH3_TEN("9") ", " \
  FLASH3_TEN("10") ", " "%110, %111"
#define FLASH3_NAMES_120 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " FLASH3_TEN("6") ", " FLASH3_TEN("7") ", " FLASH3_TEN("8") ", " FLASH3_TEN("9") ", " \
  FLASH3_TEN("10") ", " FLASH3_TEN("11")
#define FLASH3_NAMES_128 \
  FLASH3_TEN("") ", " FLASH3_TEN("1") ", " FLASH3_TEN("2") ", " FLASH3_TEN("3") ", " FLASH3_TEN("4") ", " \
  FLASH3_TEN("5") ", " FLASH3_TEN("6") ", " FLASH3_TEN("7") ", " FLASH3_TEN("8") ", " FLASH3_TEN("9") ", " \
  FLASH3_TEN("10") ", " FLASH3_TEN("11") ", " "%120, %121, %122, %123, %124, %125, %126, %127"

#define FLASH3_D4(i) "+f"(d.value[i]), "+f"(d.value[i + 1]), "+f"(d.value[i + 2]), "+f"(d.value[i + 3])
#define FLASH3_D8(i) FLASH3_D4(i), FLASH3_D4(i + 4)
#define FLASH3_REGISTERS_4 FLASH3_D4(0)
#define FLASH3_REGISTERS_8 FLASH3_D8(0)
#define FLASH3_REGISTERS_16 FLASH3_REGISTERS_8, FLASH3_D8(8)
#define FLASH3_REGISTERS_24 FLASH3_REGISTERS_16, FLASH3_D8(16)
#define FLASH3_REGISTERS_32 FLASH3_REGISTERS_24, FLASH3_D8(24)
#define FLASH3_REGISTERS_40 FLASH3_REGISTERS_32, FLASH3_D8(32)
#define FLASH3_REGISTERS_48 FLASH3_REGISTERS_40, FLASH3_D8(40)
#define FLASH3_REGISTERS_56 FLASH3_REGISTERS_48, FLASH3_D8(48)
#define FLASH3_REGISTERS_64 FLASH3_REGISTERS_56, FLASH3_D8(56)
#define FLASH3_REGISTERS_72 FLASH3_REGISTERS_64, FLASH3_D8(64)
#define FLASH3_REGISTERS_80 FLASH3_REGISTERS_72, FLASH3_D8(72)
#define FLASH3_REGISTERS_88 FLASH3_REGISTERS_80, FLASH3_D8(80)
#define FLASH3_REGISTERS_96 FLASH3_REGISTERS_88, FLASH3_D8(88)
#define FLASH3_REGISTERS_104 FLASH3_REGISTERS_96, FLASH3_D8(96)
#define FLASH3_REGISTERS_112 FLASH3_REGISTERS_104, FLASH3_D8(104)
#define FLASH3_REGISTERS_120 FLASH3_REGISTERS_112, FLASH3_D8(112)
#define FLASH3_REGISTERS_128 FLASH3_REGISTERS_120, FLASH3_D8(120)

// wgmma.mma_async.sync.aligned.m64n{N}k16.f32.{type}.{type} {d...}, a, b, p, 1, 1, a_is_m_major, b_is_n_major;
#define FLASH3_WGMMA_SHARED(N, COUNT, TYPE, A, B, P, TA, TB)                                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P                                                    \
               ", 0;\n"                                                                                  \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FLASH3_NAMES_##COUNT \
               "}, %" A ", %" B ", p, 1, 1, %" TA ", %" TB ";\n}"                                        \
               : FLASH3_REGISTERS_##COUNT                                                                \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(a_major)),      \
                 "n"(static_cast<int>(b_major)))

// wgmma.mma_async.sync.aligned.m64n{N}k16.f32.{type}.{type} {d...}, {a0, a1, a2, a3}, b, p, 1, 1, b_is_n_major;
#define FLASH3_WGMMA_REGISTERS(N, COUNT, TYPE, A0, A1, A2, A3, B, P, TB)                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P                                                            \
               ", 0;\n"                                                                                          \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FLASH3_NAMES_##COUNT         \
               "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, %" TB ";\n}"                           \
               : FLASH3_REGISTERS_##COUNT                                                                        \
               : "r"(a.word[4 * k + 0]), "r"(a.word[4 * k + 1]), "r"(a.word[4 * k + 2]), "r"(a.word[4 * k + 3]), \
                 "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(b_major)))

// One N: its accumulator registers, and the operand numbers from there on.
#define FLASH3_WGMMA_SHAPE(N, COUNT, O0, O1, O2, O3, O4, O5, O6)                                                    \
  template <class T, Major a_major, Major b_major>                                                                  \
  FLASH3_DEVICE void wgmma_instruction(Accumulator<N>& d, Descriptor a, Descriptor b, bool accumulate) {            \
    if constexpr (is_bfloat16<T>) {                                                                                 \
      FLASH3_WGMMA_SHARED(N, COUNT, "bf16", O0, O1, O2, O3, O4);                                                    \
    } else {                                                                                                        \
      FLASH3_WGMMA_SHARED(N, COUNT, "f16", O0, O1, O2, O3, O4);                                                     \
    }                                                                                                               \
  }                                                                                                                 \
  template <Major b_major, class T, int K>                                                                          \
  FLASH3_DEVICE void wgmma_instruction(Accumulator<N>& d, Operand<T, K>& a, int k, Descriptor b, bool accumulate) { \
    if constexpr (is_bfloat16<T>) {                                                                                 \
      FLASH3_WGMMA_REGISTERS(N, COUNT, "bf16", O0, O1, O2, O3, O4, O5, O6);                                         \
    } else {                                                                                                        \
      FLASH3_WGMMA_REGISTERS(N, COUNT, "f16", O0, O1, O2, O3, O4, O5, O6);                                          \
    }                                                                                                               \
  }

FLASH3_WGMMA_SHAPE(8, 4, "4", "5", "6", "7", "8", "9", "10")
FLASH3_WGMMA_SHAPE(16, 8, "8", "9", "10", "11", "12", "13", "14")
FLASH3_WGMMA_SHAPE(32, 16, "16", "17", "18", "19", "20", "21", "22")
FLASH3_WGMMA_SHAPE(48, 24, "24", "25", "26", "27", "28", "29", "30")
FLASH3_WGMMA_SHAPE(64, 32, "32", "33", "34", "35", "36", "37", "38")
FLASH3_WGMMA_SHAPE(80, 40, "40", "41", "42", "43", "44", "45", "46")
FLASH3_WGMMA_SHAPE(96, 48, "48", "49", "50", "51", "52", "53", "54")
FLASH3_WGMMA_SHAPE(112, 56, "56", "57", "58", "59", "60", "61", "62")
FLASH3_WGMMA_SHAPE(128, 64, "64", "65", "66", "67", "68", "69", "70")
FLASH3_WGMMA_SHAPE(144, 72, "72", "73", "74", "75", "76", "77", "78")
FLASH3_WGMMA_SHAPE(160, 80, "80", "81", "82", "83", "84", "85", "86")
FLASH3_WGMMA_SHAPE(176, 88, "88", "89", "90", "91", "92", "93", "94")
FLASH3_WGMMA_SHAPE(192, 96, "96", "97", "98", "99", "100", "101", "102")
FLASH3_WGMMA_SHAPE(208, 104, "104", "105", "106", "107", "108", "109", "110")
FLASH3_WGMMA_SHAPE(224, 112, "112", "113", "114", "115", "116", "117", "118")
FLASH3_WGMMA_SHAPE(240, 120, "120", "121", "122", "123", "124", "125", "126")
FLASH3_WGMMA_SHAPE(256, 128, "128", "129", "130", "131", "132", "133", "134")

#undef FLASH3_WGMMA_SHAPE
#undef FLASH3_WGMMA_REGISTERS
#undef FLASH3_WGMMA_SHARED

// d (64 x N) = a (64 x 16) b (16 x N), plus d if `accumulate`; a and b in shared memory. Asynchronous: commit, then
// wait.
template <class T, Major a_major = Major::k, Major b_major = Major::k, int N>
FLASH3_DEVICE void wgmma(Accumulator<N>& d, Descriptor a, Descriptor b, bool accumulate, Where = Where::current()) {
  wgmma_instruction<T, a_major, b_major>(d, a, b, accumulate);
}

// The same with a in registers: columns 16 k ... 16 k + 15 of the operand fragment.
template <Major b_major = Major::k, class T, int K, int N>
FLASH3_DEVICE void wgmma(Accumulator<N>& d, Operand<T, K>& a, int k, Descriptor b, bool accumulate,
                         Where = Where::current()) {
  wgmma_instruction<b_major>(d, a, k, b, accumulate);
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
