// The safetensors format: a JSON header that says where each tensor's bytes are, then the bytes.
#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "io/error.h"

namespace flash3::tools {
namespace {

using json = nlohmann::json;

struct KnownDType {
  std::string_view name;
  std::int64_t bytes;
  std::optional<DType> dtype;
};
constexpr std::array known_dtypes{
    KnownDType{"F64", 8, DType::float64},
    KnownDType{"F32", 4, DType::float32},
    KnownDType{"F16", 2, DType::float16},
    KnownDType{"BF16", 2, DType::bfloat16},
    KnownDType{"F8_E4M3", 1, DType::float8_e4m3},
    KnownDType{"I32", 4, DType::int32},
    KnownDType{"F8_E5M2", 1, std::nullopt},
    KnownDType{"I64", 8, std::nullopt},
    KnownDType{"U64", 8, std::nullopt},
    KnownDType{"U32", 4, std::nullopt},
    KnownDType{"I16", 2, std::nullopt},
    KnownDType{"U16", 2, std::nullopt},
    KnownDType{"I8", 1, std::nullopt},
    KnownDType{"U8", 1, std::nullopt},
    KnownDType{"BOOL", 1, std::nullopt},
};

const KnownDType* known(std::string_view name) {
  for (const KnownDType& k : known_dtypes) {
    if (k.name == name) return &k;
  }
  return nullptr;
}

std::uint64_t little_endian_u64(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 8; i-- > 0;) value = value << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  return value;
}

// The header's JSON. Names that appear twice and anything deeper than a tensor's shape are refused while reading: a
// lying header should not cost more memory than its length.
json parse_header(std::string_view text) {
  constexpr int max_depth = 3;
  std::array<std::set<std::string>, max_depth + 1> names;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    const auto level = static_cast<std::size_t>(std::clamp(depth, 0, max_depth));
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
      if (depth >= max_depth) refuse("header is nested too deeply");
      if (event == json::parse_event_t::object_start) names[level + 1].clear();
    }
    if (event == json::parse_event_t::key && !names[level].insert(value.get<std::string>()).second) {
      refuse("header has the name \"{}\" twice", value.get<std::string>());
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& error) {
    refuse("header is not valid JSON, at its byte {}", error.byte);
  } catch (const json::exception&) {  // a number beyond double's range
    refuse("header is not valid JSON");
  }
}

// A member of a tensor's description.
const json& member(const std::string& name, const json& description, const char* key) {
  const auto found = description.find(key);
  if (found == description.end()) refuse("tensor \"{}\" has no {}", name, key);
  return *found;
}

std::vector<std::int64_t> integers(const std::string& name, const json& list, const char* key) {
  if (!list.is_array()) refuse("tensor \"{}\": {} is not a list", name, key);
  std::vector<std::int64_t> values;
  for (const json& item : list) {
    constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (!item.is_number_unsigned() || item.get<std::uint64_t>() > largest) {
      refuse("tensor \"{}\": {} holds {}, accepted are integers from 0 to 2^63 - 1", name, key,
             item.dump(-1, ' ', true, json::error_handler_t::replace));
    }
    values.push_back(item.get<std::int64_t>());
  }
  return values;
}

SafetensorsEntry parse_entry(const std::string& name, const json& description, std::span<const std::byte> data) {
  if (!description.is_object()) refuse("tensor \"{}\" is not described by an object", name);
  SafetensorsEntry entry;
  entry.name = name;
  const json& dtype = member(name, description, "dtype");
  if (!dtype.is_string()) refuse("tensor \"{}\": dtype is not a string", name);
  entry.dtype = dtype.get<std::string>();
  entry.shape = integers(name, member(name, description, "shape"), "shape");
  const auto offsets = integers(name, member(name, description, "data_offsets"), "data_offsets");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    refuse("tensor \"{}\": data_offsets are {}, accepted are a begin and an end that is not less", name,
           text_of(offsets));
  }
  if (static_cast<std::uint64_t>(offsets[1]) > data.size()) {
    refuse("tensor \"{}\": data_offsets are {}, but the file has {} bytes of data", name, text_of(offsets),
           data.size());
  }
  const std::int64_t elements = count_elements(entry.shape);
  if (elements < 0) refuse("tensor \"{}\": shape {} has more elements than 64 bits count", name, text_of(entry.shape));
  if (const KnownDType* k = known(entry.dtype)) {
    std::int64_t size = 0;
    if (__builtin_mul_overflow(elements, k->bytes, &size) || size != offsets[1] - offsets[0]) {
      refuse("tensor \"{}\": data_offsets {} hold {} bytes, but shape {} of {} needs {} of {} bytes each", name,
             text_of(offsets), offsets[1] - offsets[0], text_of(entry.shape), entry.dtype, elements, k->bytes);
    }
  }
  entry.data = data.subspan(static_cast<std::size_t>(offsets[0]), static_cast<std::size_t>(offsets[1] - offsets[0]));
  return entry;
}

// Every byte of data belongs to one tensor.
void check_cover(std::vector<SafetensorsEntry>& tensors, std::span<const std::byte> data) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.data.data(), a.data.size()) < std::pair(b.data.data(), b.data.size());
  });
  const std::byte* end = data.data();
  const SafetensorsEntry* before = nullptr;
  for (const SafetensorsEntry& t : tensors) {
    if (t.data.data() < end) refuse("tensors \"{}\" and \"{}\" overlap in the file", before->name, t.name);
    if (t.data.data() > end) refuse("{} bytes before tensor \"{}\" belong to no tensor", t.data.data() - end, t.name);
    end = t.data.data() + t.data.size();
    before = &t;
  }
  const auto left = data.size() - static_cast<std::size_t>(end - data.data());
  if (left != 0) refuse("{} bytes at the end belong to no tensor", left);
}

}  // namespace

const SafetensorsEntry* Safetensors::find(std::string_view name) const {
  for (const SafetensorsEntry& t : tensors) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

Safetensors parse_safetensors(std::span<const std::byte> file) {
  constexpr std::size_t prefix = 8;
  if (file.size() < prefix) refuse("has {} bytes, too few for a safetensors file", file.size());
  const std::uint64_t header_size = little_endian_u64(file);
  if (header_size > file.size() - prefix) {
    refuse("says that its header has {} bytes, but only {} follow: truncated, or not a safetensors file", header_size,
           file.size() - prefix);
  }
  if (header_size > max_safetensors_header) {
    refuse("has a header of {} bytes, accepted are up to {}", header_size, max_safetensors_header);
  }
  const auto header = file.subspan(prefix, static_cast<std::size_t>(header_size));
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
  if (!text.starts_with('{')) refuse("header does not start with a JSON object: not a safetensors file");
  const json root = parse_header(text);

  Safetensors result;
  const auto data = file.subspan(prefix + header.size());
  for (const auto& [name, description] : root.items()) {
    if (name == "__metadata__") {
      if (!description.is_object()) refuse("__metadata__ is not an object");
      for (const auto& [key, value] : description.items()) {
        if (!value.is_string()) refuse("__metadata__: \"{}\" is not a string", key);
        result.metadata[key] = value.get<std::string>();
      }
    } else {
      result.tensors.push_back(parse_entry(name, description, data));
    }
  }
  check_cover(result.tensors, data);
  return result;
}

std::optional<DType> dtype_of_safetensors(std::string_view dtype) {
  const KnownDType* k = known(dtype);
  return k ? k->dtype : std::nullopt;
}

void write_safetensors(AtomicFile& file, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::size_t offset = 0;
  for (const NamedTensor& t : tensors) {
    const auto name = std::find_if(known_dtypes.begin(), known_dtypes.end(), [&](const KnownDType& k) {
                        return k.dtype == t.dtype;
                      })->name;
    header[t.name] = {{"dtype", name}, {"shape", t.shape}, {"data_offsets", {offset, offset + t.data.size()}}};
    offset += t.data.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data is aligned to 8 bytes
  std::string prefix(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  file.write(prefix + text);
  for (const NamedTensor& t : tensors) file.write(t.data);
}

}  // namespace flash3::tools
