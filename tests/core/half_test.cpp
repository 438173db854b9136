// float16 and bfloat16 conversions: every value there and back, and rounding against exact arithmetic.
#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace flash3::core {
namespace {

TEST(Half, EveryFloat16SurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float16 x{static_cast<std::uint16_t>(bits)};
    const float value = to_float(x);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_float16(value))));
    } else {
      EXPECT_EQ(to_float16(value).bits, x.bits);
      EXPECT_EQ(to_float16(static_cast<double>(value)).bits, x.bits);
    }
  }
}

TEST(Half, EveryBfloat16SurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const bfloat16 x{static_cast<std::uint16_t>(bits)};
    const float value = to_float(x);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_bfloat16(value))));
    } else {
      EXPECT_EQ(to_bfloat16(value).bits, x.bits);
      EXPECT_EQ(to_bfloat16(static_cast<double>(value)).bits, x.bits);
    }
  }
}

// Between neighbours lo and hi of the small type, the nearer one wins; on a tie, the one whose last bit is 0.
template <class Small, class Narrow>
void expect_nearest_even(Narrow narrow) {
  for (std::uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const double lo = to_float(Small{static_cast<std::uint16_t>(bits)});
    const double hi = to_float(Small{static_cast<std::uint16_t>(bits + 1)});
    if (!std::isfinite(hi)) break;
    const double middle = lo + (hi - lo) / 2;
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    EXPECT_EQ(narrow(middle).bits, even);
    EXPECT_EQ(narrow(std::nextafter(middle, lo)).bits, bits);
    EXPECT_EQ(narrow(std::nextafter(middle, hi)).bits, bits + 1);
    EXPECT_EQ(narrow(-middle).bits, even | 0x8000u);
  }
}

TEST(Half, DoublesRoundOnceToTheNearestEven) {
  expect_nearest_even<float16>([](double x) { return to_float16(x); });
  expect_nearest_even<bfloat16>([](double x) { return to_bfloat16(x); });
}

TEST(Half, FloatsRoundAsDoublesDo) {
  const auto seed = std::random_device{}();
  RecordProperty("seed", std::to_string(seed));
  std::mt19937 random(seed);
  for (int i = 0; i < 1000000; ++i) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isnan(x)) continue;
    ASSERT_EQ(to_float16(x).bits, to_float16(static_cast<double>(x)).bits) << x << " seed " << seed;
    ASSERT_EQ(to_bfloat16(x).bits, to_bfloat16(static_cast<double>(x)).bits) << x << " seed " << seed;
  }
}

TEST(Half, OverflowBecomesInfinity) {
  EXPECT_EQ(to_float16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(to_float16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_float16(-1e30f).bits, 0xfc00);
  EXPECT_EQ(to_bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(to_float16(1e300).bits, 0x7c00);
}

}  // namespace
}  // namespace flash3::core
