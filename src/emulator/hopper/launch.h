// Owns the start of a kernel on the emulator: launch runs the whole grid and throws emulator::Fault if it misbehaves.
#pragma once

#include <cstddef>

#include "hopper/machine.h"

namespace flash3::hopper::inline FLASH3_MACHINE {

using Stream = void*;

struct LaunchShape {
  int grid[3] = {1, 1, 1};
  int threads = 0;
  int cluster = 1;
  std::size_t shared_bytes = 0;
  Stream stream = nullptr;
  bool dependent = false;
};

struct LaunchStatus {
  const char* error = nullptr;
  explicit operator bool() const { return error == nullptr; }
};

template <class Params>
[[nodiscard]] LaunchStatus launch(void (*kernel)(Params), const LaunchShape& shape, const Params& params) {
  const emulator::GridShape grid = {
      {shape.grid[0], shape.grid[1], shape.grid[2]}, shape.threads, shape.cluster, shape.shared_bytes, shape.dependent};
  return {emulator::run_grid(grid, [&] { kernel(params); })};
}

}  // namespace flash3::hopper::inline FLASH3_MACHINE
