// The engines that the tests run on, and the memory that each works in.
#pragma once

#include <vector>

#include "cpu/amx.h"
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
  // Whether the CPU engine uses a tile unit (AMX) where there is one; only bfloat16 shows it.
  bool tiles = true;
};

// While it lives, the engine works as the list says.
class InUse {
 public:
  explicit InUse(const TestedEngine& engine) : before_(cpu::use_tiles(engine.tiles)) {}
  ~InUse() { cpu::use_tiles(before_); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  bool before_;
};

// Every engine of this build and machine. FLASH3_ENGINES (names, with commas) narrows the list.
const std::vector<TestedEngine>& engines_present();

}  // namespace flash3::test
