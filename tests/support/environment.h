// What a run of the tests takes from outside (FLASH3_SEED, FLASH3_CASES), and how a failure or crash is reproduced.
#pragma once

#include <cstdint>
#include <string>

namespace flash3::test {

// The seed of this run: FLASH3_SEED (decimal or 0x...), else a fixed one. "time" takes it from the clock.
std::uint64_t base_seed();

// The seed of the nth random case. The 0th is base_seed() itself, so FLASH3_SEED=<a case's seed> FLASH3_CASES=0 runs
// that case alone.
std::uint64_t case_seed(std::int64_t n);

// How many random cases or repetitions to run where `usual` are usual: usual * FLASH3_CASES (default 1), at least one.
std::int64_t cases(std::int64_t usual);

// While it lives, a crash of the process prints `what`.
class Reproduction {
 public:
  explicit Reproduction(const std::string& what);
  ~Reproduction();
  Reproduction(const Reproduction&) = delete;
  Reproduction& operator=(const Reproduction&) = delete;
};

// The command line that runs one random case of the current test again.
std::string command_for(std::uint64_t seed);

}  // namespace flash3::test
