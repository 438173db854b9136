// The shape of the work: key heads with the query rows that read them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/problem.h"

namespace flash3::cpu {

constexpr std::int64_t round_up(std::int64_t x, std::int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}
constexpr std::int64_t divide_up(std::int64_t x, std::int64_t by) { return (x + by - 1) / by; }

// One key head of one sequence and the query heads that are computed with it: all that share it, query by query. Row r
// is query r / group of query head first_query_head + r % group. So keys are read once for all of them, sums over the
// group have one fixed order, and the band still moves monotonically with the row.
struct Head {
  core::Sequence sequence;
  std::int64_t batch = 0;  // which sequence
  std::int64_t kv_head = 0;
  std::int64_t first_query_head = 0;
  std::int64_t group = 1;

  std::int64_t rows() const { return sequence.seqlen_q * group; }
  std::int64_t query(std::int64_t row) const { return row / group; }
  std::int64_t query_head(std::int64_t row) const { return first_query_head + row % group; }
  core::Range queries(core::Range rows) const {
    return rows.empty() ? core::Range{0, 0} : core::Range{query(rows.begin), query(rows.end - 1) + 1};
  }

  // Offset of a row in query, out, lse and their gradients.
  template <class P>
  std::int64_t q_offset(const core::BasicOperand<P>& t, std::int64_t row) const {
    return sequence.q_offset(t, query_head(row), query(row));
  }
};

inline std::vector<Head> heads_of(const core::Problem& problem) {
  std::vector<Head> heads;
  heads.reserve(static_cast<std::size_t>(problem.batch * problem.heads_kv));
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const core::Sequence sequence = problem.sequence(b);
    for (std::int64_t h = 0; h < problem.heads_kv; ++h) {
      heads.push_back({sequence, b, h, h * problem.group(), problem.group()});
    }
  }
  return heads;
}

}  // namespace flash3::cpu
