// The mask's ranges against brute force over every small case.
#include "core/mask.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace flash3::core {
namespace {

constexpr std::int64_t windows[] = {0, 1, 2, 3, 5, 9, unlimited};

template <class Visit>
void for_all_small_problems(Visit visit) {
  for (std::int64_t seqlen_q = 0; seqlen_q <= 7; ++seqlen_q)
    for (std::int64_t seqlen_kv = 0; seqlen_kv <= 7; ++seqlen_kv)
      for (std::int64_t left : windows)
        for (std::int64_t right : windows)
          for (bool bottom_right : {false, true})
            visit(make_band(left, right, bottom_right, seqlen_q, seqlen_kv), seqlen_q, seqlen_kv);
}

TEST(Mask, BandIsTheWindowAroundTheAlignedDiagonal) {
  const Band causal = make_band(unlimited, 0, true, 2, 5);
  EXPECT_TRUE(causal.sees(0, 3));
  EXPECT_FALSE(causal.sees(0, 4));
  EXPECT_TRUE(causal.sees(1, 4));
  const Band top_left = make_band(1, 0, false, 5, 5);
  EXPECT_TRUE(top_left.sees(3, 2));
  EXPECT_TRUE(top_left.sees(3, 3));
  EXPECT_FALSE(top_left.sees(3, 1));
  EXPECT_FALSE(top_left.sees(3, 4));
}

// A range from the formulas must be the smallest interval around what brute force finds, or empty if that is.
void expect_range(Range found, auto predicate, std::int64_t limit) {
  std::int64_t first = -1, last = -1;
  for (std::int64_t x = 0; x < limit; ++x) {
    if (!predicate(x)) continue;
    if (first < 0) first = x;
    last = x;
  }
  if (first < 0) {
    EXPECT_TRUE(found.empty()) << found.begin << ".." << found.end;
  } else {
    EXPECT_EQ(found, (Range{first, last + 1}));
  }
  EXPECT_GE(found.begin, 0);
  EXPECT_LE(found.end, std::max<std::int64_t>(limit, 0));
}

TEST(Mask, RangesAgreeWithBruteForce) {
  for_all_small_problems([](Band band, std::int64_t seqlen_q, std::int64_t seqlen_kv) {
    for (std::int64_t begin = 0; begin < seqlen_q; ++begin)
      for (std::int64_t end = begin + 1; end <= seqlen_q; ++end) {
        const auto any = [&](std::int64_t key) {
          for (std::int64_t q = begin; q < end; ++q)
            if (band.sees(q, key)) return true;
          return false;
        };
        const auto all = [&](std::int64_t key) {
          for (std::int64_t q = begin; q < end; ++q)
            if (!band.sees(q, key)) return false;
          return true;
        };
        expect_range(keys_seen_by_any(band, {begin, end}, seqlen_kv), any, seqlen_kv);
        expect_range(keys_seen_by_all(band, {begin, end}, seqlen_kv), all, seqlen_kv);
      }
    for (std::int64_t begin = 0; begin < seqlen_kv; ++begin)
      for (std::int64_t end = begin + 1; end <= seqlen_kv; ++end) {
        const auto any = [&](std::int64_t query) {
          for (std::int64_t k = begin; k < end; ++k)
            if (band.sees(query, k)) return true;
          return false;
        };
        const auto all = [&](std::int64_t query) {
          for (std::int64_t k = begin; k < end; ++k)
            if (!band.sees(query, k)) return false;
          return true;
        };
        expect_range(queries_that_see_any(band, {begin, end}, seqlen_q), any, seqlen_q);
        expect_range(queries_that_see_all(band, {begin, end}, seqlen_q), all, seqlen_q);
      }
  });
}

TEST(Mask, TilesCoverWhatIsSeenAndFullTilesNeedNoMask) {
  for_all_small_problems([](Band band, std::int64_t seqlen_q, std::int64_t seqlen_kv) {
    for (std::int64_t tile : {1, 2, 3, 4, 8})
      for (std::int64_t begin = 0; begin < seqlen_q; begin += 2) {
        const Range queries{begin, std::min(begin + 2, seqlen_q)};
        const TileRange t = key_tiles(band, queries, seqlen_kv, tile);
        ASSERT_LE(t.begin, t.full_begin);
        ASSERT_LE(t.full_begin, t.full_end);
        ASSERT_LE(t.full_end, t.end);
        for (std::int64_t q = queries.begin; q < queries.end; ++q)
          for (std::int64_t k = 0; k < seqlen_kv; ++k) {
            if (band.sees(q, k)) {
              ASSERT_TRUE(t.begin <= k / tile && k / tile < t.end);
            }
          }
        for (std::int64_t n = t.full_begin; n < t.full_end; ++n)
          for (std::int64_t k = n * tile; k < (n + 1) * tile; ++k)
            for (std::int64_t q = queries.begin; q < queries.end; ++q) ASSERT_TRUE(k < seqlen_kv && band.sees(q, k));
      }
  });
}

TEST(Mask, VisiblePairsAgreeWithBruteForce) {
  for_all_small_problems([](Band band, std::int64_t seqlen_q, std::int64_t seqlen_kv) {
    std::int64_t pairs = 0;
    for (std::int64_t q = 0; q < seqlen_q; ++q)
      for (std::int64_t k = 0; k < seqlen_kv; ++k) pairs += band.sees(q, k);
    EXPECT_EQ(visible_pairs(band, seqlen_q, seqlen_kv), static_cast<double>(pairs));
  });
}

TEST(Mask, LongSequencesDoNotOverflow) {
  const std::int64_t n = std::int64_t{1} << 40;
  const Band causal = make_band(unlimited, 0, true, n, n);
  EXPECT_EQ(keys_seen_by_any(causal, {n - 128, n}, n), (Range{0, n}));
  EXPECT_EQ(queries_that_see_any(causal, {n - 1, n}, n), (Range{n - 1, n}));
  EXPECT_EQ(key_tiles(causal, {n - 128, n}, n, 128), (TileRange{0, 0, n / 128 - 1, n / 128}));
  EXPECT_DOUBLE_EQ(visible_pairs(causal, n, n), 0.5 * static_cast<double>(n) * static_cast<double>(n + 1));
}

}  // namespace
}  // namespace flash3::core
