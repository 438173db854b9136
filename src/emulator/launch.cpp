// Owns a launch: checks its shape as the driver would, then runs the grid under the current schedule.
#include "emulator/instructions.h"
#include "emulator/machine.h"

namespace flash3::emulator {

const char* run_grid(const GridShape& shape, const std::function<void()>& kernel) {
  if (shape.threads <= 0 || shape.threads > 1024 || shape.threads % 32 != 0) {
    return "threads a block: accepted are multiples of 32 up to 1024";
  }
  if (shape.size[0] <= 0 || shape.size[1] <= 0 || shape.size[2] <= 0 || shape.size[1] > 65535 ||
      shape.size[2] > 65535) {
    return "grid: accepted are 1 to 2^31 - 1 blocks along x, 1 to 65535 along y and z";
  }
  if (shape.cluster < 1 || shape.cluster > 8 || shape.size[0] % shape.cluster != 0) {
    return "cluster: accepted are 1 to 8 blocks, a divisor of the grid along x";
  }
  if (shape.shared_bytes > shared_limit) return "shared memory: accepted are up to 227 KiB a block";
  Machine(shape, current_schedule(), kernel).run();
  return nullptr;
}

}  // namespace flash3::emulator
