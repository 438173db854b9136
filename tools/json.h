// JSON for machines: what the commands print with --json.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "flash3/plan.h"
#include "verify.h"

namespace flash3::tools {

using Json = nlohmann::ordered_json;

inline Json to_json(const Plan& plan) {
  Json refused = Json::array();
  for (const Refusal& r : plan.refused) refused.push_back({{"engine", name_of(r.engine)}, {"reason", r.reason}});
  return {{"engine", name_of(plan.engine)},
          {"problem", plan.problem},
          {"kernel", plan.kernel},
          {"threads", plan.num_threads},
          {"flops", plan.flops},
          {"reasons", plan.reasons},
          {"refused", refused}};
}

inline Json to_json(const ErrorFigures& error) {
  return {{"largest", error.largest},
          {"rmse", error.rmse},
          {"relative", error.relative},
          {"nonfinite_mismatches", error.nonfinite_mismatches}};
}

inline void print(const Json& json) { fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace)); }

}  // namespace flash3::tools
