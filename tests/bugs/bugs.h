// What the bug-class tests share.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>

#include "support/environment.h"
#include "support/verify.h"

namespace flash3::test {

inline constexpr const char* again = "a directed case: it stands in the test itself";

inline constexpr std::initializer_list<DType> engine_dtypes{DType::float32, DType::float16, DType::bfloat16};

// Two sequences of grouped heads, a little more than a tile long.
inline Case small_case(DType dtype) {
  Case c;
  c.dtype = dtype;
  c.heads_q = 4;
  c.heads_kv = 2;
  c.head_dim = c.head_dim_v = 32;
  c.query = Lengths::fixed(2, 70);
  c.key = Lengths::fixed(2, 83);
  return c;
}

}  // namespace flash3::test
