// Owns programmatic dependent launch: a kernel that starts before the one it depends on has ended.
#pragma once

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

// griddepcontrol.wait;  Waits until the grids that this one depends on have ended and their writes are visible. No
// thread may touch what they write before.
FLASH3_DEVICE void grid_dependency_wait(Where = Where::current()) {
  asm volatile("griddepcontrol.wait;" : : : "memory");
}

// griddepcontrol.launch_dependents;  Lets the dependent grid start early.
FLASH3_DEVICE void grid_launch_dependents(Where = Where::current()) {
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
