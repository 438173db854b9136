// From a problem and a GPU to one of the compiled forward kernels and the order of its tiles, with reasons.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/problem.h"
#include "plan/tiles.h"

namespace flash3::plan {

// What the planner wants to know of a GPU.
struct Gpu {
  std::string name;
  int multiprocessors = 132;
  std::int64_t l2_bytes = 50 << 20;
  int major = 9, minor = 0;  // compute capability
};

struct ForwardPlan {
  ForwardTile tile;
  int group = 1;           // query heads packed into the rows of a tile
  int heads = 0;           // of the query's tensor map: heads_kv if packed, else heads_q
  int row_blocks = 0;      // tiles down the longest sequence
  int tiles = 0;           // row_blocks x heads x batch
  int blocks = 0;          // of the launch: they stay and take one tile after another
  int heads_together = 1;  // heads whose tiles are interleaved
  bool longest_first = false;
  bool unequal_lengths = false;  // of queries: tiles is then the most there can be
  std::vector<std::string> reasons;

  std::string describe(DType dtype) const;  // one line
};

// Why the Hopper kernels cannot run the problem on any GPU; nothing if they can.
std::optional<std::string> forward_refusal(const core::ForwardProblem& problem);

// For a problem that is not refused.
ForwardPlan plan_forward(const core::ForwardProblem& problem, const Gpu& gpu);

}  // namespace flash3::plan
