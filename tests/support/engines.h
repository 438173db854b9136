// The engines that the tests run on, and the memory that each works in.
#pragma once

#include <vector>

#include "flash3/plan.h"
#include "support/memory.h"

namespace flash3::test {

struct TestedEngine {
  Engine engine;
  MemorySpace* memory = nullptr;  // null: host memory
  // How many of the usual random cases it can afford.
  double share = 1;
  // Refuses by name what it cannot do yet: a refusal skips the case. Else a refusal is a failure.
  bool partial = false;
};

// Every engine of this build and machine. FLASH3_ENGINES (names, with commas) narrows the list.
const std::vector<TestedEngine>& engines_present();

}  // namespace flash3::test
