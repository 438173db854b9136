// Owns the register of mutants: kernels with one mistake each, and what the emulator must say of them.
#pragma once

#include <functional>
#include <set>
#include <string>

#include "emulator/report.h"
#include "forward/params.h"
#include "hopper/launch.h"

namespace flash3::mutants {

using enum emulator::FaultKind;

struct Mutant {
  std::set<emulator::FaultKind> expected;  // empty: the sound kernel, to run without a report
  std::function<void()> run;               // throws emulator::Fault
};

// As the initialiser of a global variable.
struct Register {
  Register(std::string name, std::set<emulator::FaultKind> expected, std::function<void()> run);
};

// Starts one compiled kernel: bfloat16, this head_dim.
using Start = hopper::LaunchStatus (*)(const forward_kernels::Params& params, int blocks);

// Two small causal problems with several tiles a block, one of them with a single step a tile, where no other ring
// holds up who takes a stage too early.
void run_forward(int head_dim, Start start);

}  // namespace flash3::mutants
