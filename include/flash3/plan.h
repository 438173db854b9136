/// \file
/// A plan: which engine runs a problem, how, and why; printable, made without running anything.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flash3/export.h"

namespace flash3 {

/// The machines that attention runs on.
enum class Engine : std::uint8_t {
  automatic,  ///< the best one present that can do it
  cuda,       ///< Hopper GPU kernels
  cpu,        ///< tiled online softmax, SIMD, all cores
  reference,  ///< naive float64; the specification, for tests and verification
  emulator,   ///< the Hopper kernels' source on the host, under an adversarial model of the GPU's asynchrony
};

/// "automatic", "cuda", "cpu", "reference", "emulator".
FLASH3_EXPORT std::string_view name_of(Engine engine) noexcept;

/// Why an engine was passed over.
struct Refusal {
  Engine engine;
  std::string reason;
};

/// What will run and why.
struct Plan {
  Engine engine = Engine::automatic;
  std::string problem;  ///< the problem in one line
  std::string kernel;   ///< what runs, in the engine's own words: instruction set, tiles
  int num_threads = 0;  ///< CPU threads, 0 on a GPU
  /// Floating-point operations of the visible (query, key) pairs' matrix products; 0 if lengths are on a GPU.
  double flops = 0;
  std::vector<std::string> reasons;  ///< why this engine and this configuration
  std::vector<Refusal> refused;      ///< better engines that were passed over

  /// Several lines for a person.
  FLASH3_EXPORT std::string to_string() const;
};

}  // namespace flash3
