// Owns wgmma on the host: fragments whose registers the tensor core has, and the products in flight.
#pragma once

#include <cstdint>
#include <vector>

#include "emulator/clock.h"
#include "emulator/report.h"

namespace flash3::emulator {

struct AccumulatorTile;
struct Warpgroup;

// What the emulator knows of one thread's fragment.
struct FragmentState {
  enum class Phase : std::uint8_t {
    free,       // the thread's own
    in_flight,  // wgmma has it
    unnamed,    // waited for, but by a wait that did not name it
  };

  FragmentState();
  ~FragmentState();
  FragmentState(const FragmentState&) = delete;
  FragmentState& operator=(const FragmentState&) = delete;

  // Ordinary code reads or writes a register of it.
  void touch(int index, int count, const Where& where) {
    if (phase != Phase::free || index < 0 || index >= count) refuse(index, count, where);
    touched = *fences;
    initialised = true;
  }
  void read(int index, int count, const Where& where) const {
    if (phase != Phase::free || index < 0 || index >= count) refuse(index, count, where);
    touched = *fences;
  }
  void touch_operand(int index, int count, const Where& where) {
    if (readers > 0 || index < 0 || index >= count) refuse(index, count, where);
    touched = *fences;
  }
  // Ordinary code may read an operand while wgmma reads it, too.
  void read_operand(int index, int count, const Where& where) const {
    if (index < 0 || index >= count) refuse(index, count, where);
    touched = *fences;
  }
  // A wait names it.
  void name(const Where& where);

  [[noreturn]] void refuse(int index, int count, const Where& where) const;

  const std::uint32_t* fences;    // its thread's count of wgmma_fence
  mutable std::uint32_t touched;  // the count when ordinary code last used it
  int readers = 0;                // wgmma in flight that have it as operand A
  Phase phase = Phase::free;
  bool initialised = false;
  Where issued;  // the wgmma that has it, or had it last
};

enum class MatrixType { bfloat16, float16 };

// One lane's view of a wgmma.
struct ProductCall {
  int columns;  // N
  MatrixType type;
  bool a_is_m_major, b_is_n_major;
  bool accumulate;
  std::uint64_t a = 0, b = 0;  // descriptors
  float* d;
  FragmentState* d_state;
  const std::uint32_t* a_words = nullptr;  // four, if operand A is in registers
  FragmentState* a_state = nullptr;
  Where where;
};

// A product in flight.
struct MatrixProduct {
  ProductCall call;
  std::uint64_t number = 0;
  AccumulatorTile* tile = nullptr;
  std::vector<std::uint32_t> a_words;  // 4 for each of 128 threads, if A is in registers
  Clock known, fenced;
  double priority = 0;
};

void issue_product(const ProductCall& call);
void commit_products(const Where& where);
void wait_for_products(int pending, const Where& where);

// The oldest product of the warpgroup's queue happens.
void land_product(Warpgroup& warpgroup);

}  // namespace flash3::emulator
