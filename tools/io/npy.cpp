// NumPy's .npy format: one array behind a short header in Python's notation.
#include "io/npy.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <set>

#include "io/error.h"

namespace flash3::tools {
namespace {

constexpr std::string_view magic = "\x93NUMPY";
constexpr std::size_t max_header = 64 << 10;

// Reads the dictionary of the header, {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }, and no more of
// Python.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : rest_(text) {}

  NpyArray read() {
    NpyArray array;
    bool fortran_order = false;
    std::set<std::string> seen;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr") {
        skip_space();
        if (rest_.starts_with('[') || rest_.starts_with('('))
          refuse("is a structured array, accepted is one plain dtype");
        array.descr = string();
      } else if (key == "fortran_order") {
        fortran_order = boolean();
      } else if (key == "shape") {
        array.shape = tuple();
      } else {
        refuse("header has the unknown key '{}'", key);
      }
      if (!seen.insert(key).second) refuse("header has the key '{}' twice", key);
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (!rest_.empty()) malformed();
    if (seen.size() != 3) refuse("header lacks descr, fortran_order or shape");
    if (fortran_order && array.shape.size() > 1) {
      refuse("is in Fortran (column-major) order, accepted is C order: save numpy.ascontiguousarray(x)");
    }
    return array;
  }

 private:
  [[noreturn]] static void malformed() { refuse("header is not the dictionary that a .npy file starts with"); }

  void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\n"), rest_.size())); }

  bool accept(char c) {
    skip_space();
    if (!rest_.starts_with(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  void expect(char c) {
    if (!accept(c)) malformed();
  }

  std::string string() {
    skip_space();
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) malformed();
    const std::size_t end = rest_.find(rest_[0], 1);
    if (end == std::string_view::npos) malformed();
    const std::string text(rest_.substr(1, end - 1));
    const auto plain = [](char c) { return c >= 0x20 && c < 0x7f && c != '\\'; };
    if (!std::all_of(text.begin(), text.end(), plain)) malformed();
    rest_.remove_prefix(end + 1);
    return text;
  }

  bool boolean() {
    skip_space();
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}}) {
      if (rest_.starts_with(word)) {
        rest_.remove_prefix(word.size());
        return value;
      }
    }
    malformed();
  }

  Shape tuple() {
    Shape shape;
    expect('(');
    while (!accept(')')) {
      skip_space();
      std::int64_t extent = 0;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), extent);
      if (error == std::errc::result_out_of_range) refuse("header has an extent that 64 bits do not hold");
      if (error != std::errc{}) malformed();
      if (extent < 0) refuse("header has the negative extent {}", extent);
      rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
      shape.push_back(extent);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return shape;
  }

  std::string_view rest_;
};

// Bytes of an element, from the digits that end a plain descr: "<f4", "|V2".
std::int64_t item_size(std::string_view descr) {
  std::int64_t size = 0;
  if (descr.size() < 3) return 0;
  const auto [end, error] = std::from_chars(descr.data() + 2, descr.data() + descr.size(), size);
  return error == std::errc{} && end == descr.data() + descr.size() ? size : 0;
}

std::string_view descr_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "<f4";
    case DType::float16:
      return "<f2";
    case DType::float64:
      return "<f8";
    case DType::int32:
      return "<i4";
    case DType::bfloat16:
      return "<V2";
    case DType::float8_e4m3:
      return "|V1";
  }
  return "";
}

}  // namespace

NpyArray parse_npy(std::span<const std::byte> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (text.size() < 10 || !text.starts_with(magic)) refuse("does not start as a .npy file does");
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(std::to_integer<unsigned>(file[i])); };
  const std::size_t major = byte(6);
  if (major < 1 || major > 3) refuse("is .npy version {}.{}, accepted are 1 to 3", major, byte(7));
  const std::size_t prefix = major == 1 ? 10 : 12;
  if (file.size() < prefix) refuse("is truncated within its header");
  std::size_t header_size = byte(8) | byte(9) << 8;
  if (major > 1) header_size |= byte(10) << 16 | byte(11) << 24;
  if (header_size > file.size() - prefix) {
    refuse("says that its header has {} bytes, but only {} follow", header_size, file.size() - prefix);
  }
  if (header_size > max_header) refuse("has a header of {} bytes, accepted are up to {}", header_size, max_header);

  NpyArray array = HeaderReader(text.substr(prefix, header_size)).read();
  if (array.descr.find('O') != std::string::npos) {
    refuse("holds Python objects ({}), accepted are plain numbers", array.descr);
  }
  const std::int64_t item = item_size(array.descr);
  if (item < 1) refuse("has dtype '{}', accepted are <f2, <f4, <f8, <i4 and <V2", array.descr);
  array.data = file.subspan(prefix + header_size);
  const std::int64_t elements = count_elements(array.shape);
  std::int64_t size = 0;
  if (elements < 0 || __builtin_mul_overflow(elements, item, &size)) {
    refuse("shape {} has more bytes than 64 bits count", text_of(array.shape));
  }
  if (static_cast<std::uint64_t>(size) != array.data.size()) {
    refuse("shape {} of '{}' needs {} bytes of data, but the file has {}", text_of(array.shape), array.descr, size,
           array.data.size());
  }
  return array;
}

DType dtype_of_npy(std::string_view descr, std::optional<DType> given) {
  if (descr.starts_with('>')) {
    refuse("is big-endian ('{}'), accepted is little-endian: save x.astype(x.dtype.newbyteorder('<'))", descr);
  }
  for (DType dtype : {DType::float32, DType::float16, DType::float64, DType::int32}) {
    if (descr == descr_of(dtype)) return dtype;
  }
  if (descr == "<V2" || descr == "|V2") {
    if (given == DType::bfloat16) return DType::bfloat16;
    refuse("holds raw 2-byte elements ('{}'): if they are bfloat16, say --dtype bfloat16", descr);
  }
  refuse("has dtype '{}', accepted are <f2, <f4, <f8, <i4 and, with --dtype bfloat16, <V2", descr);
}

void write_npy(AtomicFile& file, DType dtype, std::span<const std::int64_t> shape, std::span<const std::byte> data) {
  std::string extents;
  for (std::int64_t extent : shape) extents += fmt::format("{}, ", extent);
  if (shape.size() > 1) extents.resize(extents.size() - 2);  // (2, 3), but (2,)
  if (shape.size() == 1) extents.resize(extents.size() - 1);
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr_of(dtype), extents);
  constexpr std::size_t prefix = 10, alignment = 64;  // a shape of six extents stays far below version 1's 65535 bytes
  header.resize((prefix + header.size() + 1 + alignment - 1) / alignment * alignment - prefix - 1, ' ');
  header += '\n';
  std::string start(magic);
  start += {'\1', '\0', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  file.write(start + header);
  file.write(data);
}

}  // namespace flash3::tools
