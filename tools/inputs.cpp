// The tensors of a problem: named on the command line, read from files.
#include "inputs.h"

#include <cstring>
#include <map>

#include "io/error.h"
#include "io/npy.h"

namespace flash3::tools {
namespace {

// Reads tensors, each file once.
class Reader {
 public:
  explicit Reader(std::optional<DType> npy_dtype) : npy_dtype_(npy_dtype) {}

  // The tensor that `where` (FILE or FILE:TENSOR) names; of a safetensors file without TENSOR, the first of `names`.
  InputTensor read(const std::string& flag, const std::string& where, const std::vector<std::string>& names) {
    std::filesystem::path path = where;
    std::string name;
    const std::size_t colon = where.rfind(':');
    if (colon != std::string::npos && !std::filesystem::exists(path)) {
      path = where.substr(0, colon);
      name = where.substr(colon + 1);
    }
    if (path.extension() == ".npy") {
      if (!name.empty()) refuse("{}: {} is a .npy file and holds one array without a name", flag, path.string());
      return read_npy(path);
    }
    if (auto tensor = find(path, name.empty() ? names : std::vector{name})) return *tensor;
    refuse("{}: {} has no tensor \"{}\"; it has {}", flag, path.string(), name.empty() ? names.front() : name,
           tensor_names(path));
  }

  // The first of `names` that a safetensors file has, if it has one.
  std::optional<InputTensor> find(const std::filesystem::path& path, const std::vector<std::string>& names) {
    const Opened& file = open_safetensors(path);
    for (const std::string& name : names) {
      if (const SafetensorsEntry* entry = file.contents.find(name)) return view_of(path, file, *entry);
    }
    return std::nullopt;
  }

  std::vector<std::filesystem::path> paths() const {
    std::vector<std::filesystem::path> all = npy_paths_;
    for (const auto& [path, file] : safetensors_) all.push_back(path);
    return all;
  }

 private:
  struct Opened {
    std::shared_ptr<const MappedFile> file;
    Safetensors contents;
  };

  const Opened& open_safetensors(const std::filesystem::path& path) {
    const auto found = safetensors_.find(path);
    if (found != safetensors_.end()) return found->second;
    if (path.extension() != ".safetensors") {
      refuse("{}: the name ends in '{}', accepted are .safetensors and .npy", path.string(), path.extension().string());
    }
    Opened opened{MappedFile::open(path), {}};
    try {
      opened.contents = parse_safetensors(opened.file->bytes());
    } catch (const InputError& error) {
      refuse("{}: {}", path.string(), error.what());
    }
    return safetensors_.emplace(path, std::move(opened)).first->second;
  }

  std::string tensor_names(const std::filesystem::path& path) {
    constexpr std::size_t most = 8;
    std::string text;
    std::size_t count = 0;
    for (const SafetensorsEntry& t : open_safetensors(path).contents.tensors) {
      if (count < most) text += (text.empty() ? "" : ", ") + t.name;
      ++count;
    }
    if (count == 0) return "none";
    return count > most ? text + fmt::format(" and {} more", count - most) : text;
  }

  InputTensor view_of(const std::filesystem::path& path, const Opened& file, const SafetensorsEntry& entry) {
    const auto dtype = dtype_of_safetensors(entry.dtype);
    if (!dtype) {
      refuse("{}: tensor \"{}\" has dtype {}, accepted are F32, F16, BF16, F64 and, for lengths, I32", path.string(),
             entry.name, entry.dtype);
    }
    return make(path, file.file, *dtype, entry.shape, entry.data);
  }

  InputTensor read_npy(const std::filesystem::path& path) {
    const auto file = MappedFile::open(path);
    npy_paths_.push_back(path);
    try {
      const NpyArray array = parse_npy(file->bytes());
      return make(path, file, dtype_of_npy(array.descr, npy_dtype_), array.shape, array.data);
    } catch (const InputError& error) {
      refuse("{}: {}", path.string(), error.what());
    }
  }

  // Points into the file, or copies what the file does not align to its elements.
  static InputTensor make(const std::filesystem::path& path, const std::shared_ptr<const MappedFile>& file, DType dtype,
                          const Shape& shape, std::span<const std::byte> data) {
    if (shape.size() > static_cast<std::size_t>(ConstTensorView::max_rank)) {
      refuse("{}: a tensor has {} dimensions, accepted are up to {}", path.string(), shape.size(),
             ConstTensorView::max_rank);
    }
    if (reinterpret_cast<std::uintptr_t>(data.data()) % size_of(dtype) == 0) {
      return {dense_view<const void*>(data.data(), dtype, shape), file};
    }
    const std::shared_ptr<void> copy = allocate_aligned(data.size());
    std::memcpy(copy.get(), data.data(), data.size());
    return {dense_view<const void*>(copy.get(), dtype, shape), copy};
  }

  std::optional<DType> npy_dtype_;
  std::map<std::filesystem::path, Opened> safetensors_;
  std::vector<std::filesystem::path> npy_paths_;
};

}  // namespace

void InputFlags::add_to(CLI::App& app) {
  const std::string group = "Tensors";
  app.add_option("files", files, "FILE.safetensors with tensors q, k, v; or three files: q.npy k.npy v.npy")
      ->type_name("FILE")
      ->expected(0, 3);
  const auto tensor = [&](const std::string& flag, std::string& where, const std::string& help) {
    app.add_option(flag, where, help)->type_name("FILE[:TENSOR]")->group(group);
  };
  tensor("--query,-q", query, "(batch, seqlen_q, heads_q, head_dim) or (total_q, heads_q, head_dim)");
  tensor("--key,-k", key, "(batch, seqlen_kv, heads_kv, head_dim) or (total_kv, heads_kv, head_dim)");
  tensor("--value,-v", value, "(batch, seqlen_kv, heads_kv, head_dim_v) or (total_kv, heads_kv, head_dim_v)");
  tensor("--bias", bias, "(batch or 1, heads_q or 1, seqlen_q or 1, seqlen_kv)");
  tensor("--sinks", sinks, "float32 (heads_q): a logit a head that joins the denominator");
  tensor("--cu-seqlens-q", cu_seqlens_q, "int32 (batch + 1): where the sequences of query start");
  tensor("--cu-seqlens-k", cu_seqlens_k, "int32 (batch + 1): where the sequences of key and value start");
  tensor("--seqused-q", seqused_q, "int32 (batch): rows of each sequence of query that are used");
  tensor("--seqused-k", seqused_k, "int32 (batch): rows of each sequence of key and value that are used");
  app.add_option_function<std::string>(
         "--dtype",
         [this](const std::string& text) {
           if (text != "bfloat16") throw CLI::ValidationError("--dtype", "is '" + text + "', accepted is bfloat16");
           dtype = DType::bfloat16;
         },
         "bfloat16: what the raw 2-byte elements of .npy files are")
      ->type_name("NAME")
      ->group(group);
  add_choice(app, "--layout", layout,
             {{"bshd", static_cast<int>(Layout::bshd)}, {"bhsd", static_cast<int>(Layout::bhsd)}},
             "order of batch, seqlen, heads and head_dim, in and out")
      ->group(group);
}

Inputs read_inputs(const InputFlags& flags) {
  std::string query = flags.query, key = flags.key, value = flags.value, common;
  const auto is_npy = [](const std::string& file) { return std::filesystem::path(file).extension() == ".npy"; };
  if (flags.files.size() == 1 && !is_npy(flags.files[0])) {
    common = flags.files[0];
  } else if (flags.files.size() == 3 && query.empty() && key.empty() && value.empty()) {
    query = flags.files[0], key = flags.files[1], value = flags.files[2];
  } else if (!flags.files.empty()) {
    refuse("FILE: {} given, accepted is one .safetensors file, or three files for query, key and value",
           flags.files.size() == 1 ? "one .npy file was" : fmt::format("{} files were", flags.files.size()));
  }

  Reader reader(flags.dtype);
  Inputs inputs;
  const auto required = [&](const char* flag, const std::string& where, const std::vector<std::string>& names) {
    if (where.empty() && common.empty()) refuse("{}: not given; nor is a .safetensors file that holds it", flag);
    InputTensor tensor = reader.read(flag, where.empty() ? common : where, names);
    inputs.memory.push_back(tensor.memory);
    return flags.layout == Layout::bhsd ? swap_heads_and_rows(tensor.view) : tensor.view;
  };
  const auto optional = [&](const char* flag, const std::string& where,
                            const std::vector<std::string>& names) -> std::optional<ConstTensorView> {
    std::optional<InputTensor> tensor;
    if (!where.empty()) {
      tensor = reader.read(flag, where, names);
    } else if (!common.empty()) {
      tensor = reader.find(common, names);
    }
    if (!tensor) return std::nullopt;
    inputs.memory.push_back(tensor->memory);
    return tensor->view;
  };
  ForwardArgs& args = inputs.args;
  args.query = required("--query", query, {"q", "query"});
  args.key = required("--key", key, {"k", "key"});
  args.value = required("--value", value, {"v", "value"});
  args.bias = optional("--bias", flags.bias, {"bias"});
  args.sinks = optional("--sinks", flags.sinks, {"sinks"});
  args.cu_seqlens_q = optional("--cu-seqlens-q", flags.cu_seqlens_q, {"cu_seqlens_q", "cu_seqlens"});
  args.cu_seqlens_k = optional("--cu-seqlens-k", flags.cu_seqlens_k, {"cu_seqlens_k", "cu_seqlens"});
  args.seqused_q = optional("--seqused-q", flags.seqused_q, {"seqused_q", "seqused"});
  args.seqused_k = optional("--seqused-k", flags.seqused_k, {"seqused_k", "seqused"});
  inputs.paths = reader.paths();
  return inputs;
}

Shape out_shape(const ForwardArgs& args) {
  const ConstTensorView &query = args.query, &value = args.value;
  Shape shape(query.shape.begin(), query.shape.begin() + query.rank);
  if (query.rank > 0 && value.rank > 0) shape.back() = value.shape[static_cast<std::size_t>(value.rank - 1)];
  return shape;
}

Shape lse_shape(const ForwardArgs& args) {
  const auto& shape = args.query.shape;
  if (args.query.rank == 4) return {shape[0], shape[2], shape[1]};
  return {shape[1], shape[0]};
}

TensorView placeholder(DType dtype, const Shape& shape, int number) {
  // Apart from each other and from every mapping that a process can have.
  constexpr int bits = 57;  // the reach that the library accepts
  const std::int64_t elements = count_elements(shape);
  std::int64_t bytes = 0;
  if (elements < 0 || __builtin_mul_overflow(elements, static_cast<std::int64_t>(size_of(dtype)), &bytes) ||
      bytes >= std::int64_t{1} << bits) {
    refuse("a tensor of shape {} is larger than any memory", text_of(shape));
  }
  return dense_view(reinterpret_cast<void*>(static_cast<std::uintptr_t>(number + 1) << bits), dtype, shape);
}

DType row_dtype(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

}  // namespace flash3::tools
