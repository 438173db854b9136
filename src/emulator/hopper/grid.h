// Owns programmatic dependent launch on the emulator, where grids run one after the other.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

inline void grid_dependency_wait(Where = Where::current()) { emulator::grid_dependency_wait(); }
inline void grid_launch_dependents(Where = Where::current()) {}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
