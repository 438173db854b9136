// Owns the register fragments of wgmma on the emulator: they know when the tensor core has them.
#pragma once

#include "emulator/product.h"
#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// An index that remembers the line it was written on.
struct Index {
  constexpr Index(int i_, Where where_ = Where::current()) : i(i_), where(where_) {}
  int i;
  Where where;
};

template <int N>
struct Accumulator {
  static constexpr int columns = N;
  static constexpr int count = N / 2;

  float& operator[](Index at) {
    state.touch(at.i, count, at.where);
    return value[at.i];
  }
  float operator[](Index at) const {
    state.read(at.i, count, at.where);
    return value[at.i];
  }

  float value[count];
  emulator::FragmentState state;
};

// A register of an operand: reading it is fine while wgmma reads it too, writing is not.
struct OperandWord {
  operator unsigned() const {
    state.read_operand(at.i, count, at.where);
    return words[at.i];
  }
  OperandWord& operator=(unsigned word) {
    state.touch_operand(at.i, count, at.where);
    words[at.i] = word;
    return *this;
  }
  unsigned* words;
  emulator::FragmentState& state;
  int count;
  Index at;
};

template <class T, int K>
struct Operand {
  using Element = T;
  static constexpr int columns = K;
  static constexpr int count = K / 4;

  OperandWord operator[](Index at) { return {word, state, count, at}; }
  unsigned operator[](Index at) const {
    state.read_operand(at.i, count, at.where);
    return word[at.i];
  }

  unsigned word[count];
  emulator::FragmentState state;
};

}  // namespace flash3::hopper::inline FLASH3_MACHINE
