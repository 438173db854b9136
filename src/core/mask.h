// The mask: one band per sequence, and the key and query ranges that follow from it. Every engine, planner and kernel
// asks here.
//
// Plain constexpr integer code without host library includes, so that device code can use it too.
#pragma once

#include <cstdint>

namespace flash3::core {

// Half open. Empty if begin >= end. Everything here comes in 64 bits, and for kernels in 32 (see narrow()).
template <class Int>
struct BasicRange {
  Int begin = 0;
  Int end = 0;

  constexpr bool empty() const { return begin >= end; }
  constexpr Int size() const { return empty() ? 0 : end - begin; }
  friend constexpr bool operator==(const BasicRange&, const BasicRange&) = default;
};
using Range = BasicRange<std::int64_t>;

// Far beyond any sequence, near enough that sums of a few do not overflow.
inline constexpr std::int64_t unlimited = std::int64_t{1} << 60;

// Query i sees key j if and only if i + lo <= j <= i + hi (and 0 <= j < seqlen_kv).
template <class Int>
struct BasicBand {
  Int lo = static_cast<Int>(-unlimited);
  Int hi = static_cast<Int>(unlimited);

  constexpr bool sees(Int query, Int key) const { return query + lo <= key && key <= query + hi; }
  constexpr bool everything(Int seqlen_q, Int seqlen_kv) const {
    return seqlen_q <= 0 || seqlen_kv <= 0 || (seqlen_q - 1 + lo <= 0 && seqlen_kv - 1 <= hi);
  }
  friend constexpr bool operator==(const BasicBand&, const BasicBand&) = default;
};
using Band = BasicBand<std::int64_t>;

// The same band for sequences of at most 2^30 - 1 rows, where sums of a row and a limit fit 32 bits.
inline constexpr std::int64_t narrow_limit = (std::int64_t{1} << 30) - 1;
constexpr BasicBand<std::int32_t> narrow(Band band) {
  const auto clamp = [](std::int64_t x) {
    return static_cast<std::int32_t>(x < -narrow_limit ? -narrow_limit : x > narrow_limit ? narrow_limit : x);
  };
  return {clamp(band.lo), clamp(band.hi)};
}

namespace detail {
template <class T>
struct Identity {
  using type = T;
};
// A parameter of this type is converted to what the band's type says, and not deduced.
template <class T>
using Same = typename Identity<T>::type;

template <class Int>
constexpr Int min(Int a, Same<Int> b) {
  return a < b ? a : b;
}
template <class Int>
constexpr Int max(Int a, Same<Int> b) {
  return a > b ? a : b;
}
// An empty range is reported as [end, end) with end inside the limits, so that callers may loop without a check.
template <class Int>
constexpr BasicRange<Int> clamp(Int begin, Int end, Int limit) {
  begin = min(max(begin, 0), limit);
  end = min(max(end, begin), limit);
  return {begin, end};
}
}  // namespace detail

// Keys that at least one of the queries sees.
template <class Int>
constexpr BasicRange<Int> keys_seen_by_any(BasicBand<Int> band, detail::Same<BasicRange<Int>> queries,
                                           detail::Same<Int> seqlen_kv) {
  if (queries.empty()) return {0, 0};
  return detail::clamp(queries.begin + band.lo, queries.end + band.hi, seqlen_kv);
}

// Keys that every one of the queries sees: no mask is needed there.
template <class Int>
constexpr BasicRange<Int> keys_seen_by_all(BasicBand<Int> band, detail::Same<BasicRange<Int>> queries,
                                           detail::Same<Int> seqlen_kv) {
  if (queries.empty()) return {0, 0};
  return detail::clamp(queries.end - 1 + band.lo, queries.begin + band.hi + 1, seqlen_kv);
}

// Queries that see at least one of the keys.
template <class Int>
constexpr BasicRange<Int> queries_that_see_any(BasicBand<Int> band, detail::Same<BasicRange<Int>> keys,
                                               detail::Same<Int> seqlen_q) {
  if (keys.empty()) return {0, 0};
  return detail::clamp(keys.begin - band.hi, keys.end - band.lo, seqlen_q);
}

// Queries that see every one of the keys.
template <class Int>
constexpr BasicRange<Int> queries_that_see_all(BasicBand<Int> band, detail::Same<BasicRange<Int>> keys,
                                               detail::Same<Int> seqlen_q) {
  if (keys.empty()) return {0, 0};
  return detail::clamp(keys.end - 1 - band.hi, keys.begin - band.lo + 1, seqlen_q);
}

// The tiles that a loop visits: [begin, end), of which [full_begin, full_end) need no mask. The rest stand before and
// after: begin <= full_begin <= full_end <= end.
template <class Int>
struct BasicTileRange {
  Int begin = 0;
  Int full_begin = 0;
  Int full_end = 0;
  Int end = 0;
  friend constexpr bool operator==(const BasicTileRange&, const BasicTileRange&) = default;
};
using TileRange = BasicTileRange<std::int64_t>;

namespace detail {
template <class Int>
constexpr BasicTileRange<Int> tiles(BasicRange<Int> any, BasicRange<Int> all, Int tile) {
  if (any.empty()) return {0, 0, 0, 0};
  BasicTileRange<Int> t{any.begin / tile, 0, 0, (any.end + tile - 1) / tile};
  t.full_begin = min(max((all.begin + tile - 1) / tile, t.begin), t.end);
  t.full_end = min(max(all.end / tile, t.full_begin), t.end);
  return t;
}
}  // namespace detail

// Key tiles of size `tile` for a tile of queries. A last tile that runs past seqlen_kv counts as masked.
template <class Int>
constexpr BasicTileRange<Int> key_tiles(BasicBand<Int> band, detail::Same<BasicRange<Int>> queries,
                                        detail::Same<Int> seqlen_kv, detail::Same<Int> tile) {
  return detail::tiles<Int>(keys_seen_by_any(band, queries, seqlen_kv), keys_seen_by_all(band, queries, seqlen_kv),
                            tile);
}

// Query tiles of size `tile` for a tile of keys. A last tile that runs past seqlen_q counts as masked.
template <class Int>
constexpr BasicTileRange<Int> query_tiles(BasicBand<Int> band, detail::Same<BasicRange<Int>> keys,
                                          detail::Same<Int> seqlen_q, detail::Same<Int> tile) {
  return detail::tiles<Int>(queries_that_see_any(band, keys, seqlen_q), queries_that_see_all(band, keys, seqlen_q),
                            tile);
}

// The band of one sequence: causal and window are one thing, and the alignment is an offset.
constexpr Band make_band(std::int64_t window_left, std::int64_t window_right, bool bottom_right, std::int64_t seqlen_q,
                         std::int64_t seqlen_kv) {
  const std::int64_t offset = bottom_right ? seqlen_kv - seqlen_q : 0;
  return {window_left >= unlimited ? -unlimited : offset - window_left,
          window_right >= unlimited ? unlimited : offset + window_right};
}

// (query, key) pairs that the band lets through, in closed form.
constexpr double visible_pairs(Band band, std::int64_t seqlen_q, std::int64_t seqlen_kv) {
  // Row i sees clamp(i + hi + 1) - clamp(i + lo) keys, each clamped to [0, seqlen_kv]; this sums one such term over
  // rows.
  const auto sum_clamped = [=](std::int64_t offset) {
    const std::int64_t rising = detail::min(detail::max(-offset, 0), seqlen_q);
    const std::int64_t flat = detail::min(detail::max(seqlen_kv - offset, 0), seqlen_q);
    const double rows = static_cast<double>(flat - rising);
    const double rising_part = rows == 0 ? 0 : rows * static_cast<double>(rising + flat - 1 + 2 * offset) / 2;
    return rising_part + static_cast<double>(seqlen_q - flat) * static_cast<double>(seqlen_kv);
  };
  return sum_clamped(band.hi + 1) - sum_clamped(band.lo);
}

}  // namespace flash3::core
