// The tensors of a problem: named on the command line, read from files.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "flash3/attention.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "io/tensor.h"
#include "options.h"

namespace flash3::tools {

// Where the dimensions of query, key, value and out stand.
enum class Layout {
  bshd,  // (batch, seqlen, heads, head_dim), (total, heads, head_dim)
  bhsd,  // (batch, heads, seqlen, head_dim), (heads, total, head_dim)
};

// The command line's word on inputs.
struct InputFlags {
  std::vector<std::string> files;  // one safetensors file, or three npy files
  std::string query, key, value, bias, sinks, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k;  // FILE or FILE:TENSOR
  std::optional<DType> dtype;  // of npy files that do not say
  Layout layout = Layout::bshd;

  void add_to(CLI::App& app);
  bool any() const { return !files.empty() || !query.empty() || !key.empty() || !value.empty(); }
};

// The inputs of a forward pass and the memory behind them. `args.out` and `args.lse` are left to the caller.
struct Inputs {
  ForwardArgs args;
  std::vector<std::filesystem::path> paths;  // of every file that was read
  std::vector<std::shared_ptr<const void>> memory;
};

// Throws InputError naming the flag or file at fault.
Inputs read_inputs(const InputFlags& flags);

// The shapes of out and lse, and views of them at addresses that are never touched, so that a problem can be checked
// and planned before memory is asked for.
Shape out_shape(const ForwardArgs& args);
Shape lse_shape(const ForwardArgs& args);
TensorView placeholder(DType dtype, const Shape& shape, int number);

// The dtype of lse, sinks and d_lse.
DType row_dtype(DType dtype);

// Swaps the two dimensions in which bshd and bhsd differ.
template <class Pointer>
BasicTensorView<Pointer> swap_heads_and_rows(BasicTensorView<Pointer> view) {
  if (view.rank == 3 || view.rank == 4) {
    const auto d = static_cast<std::size_t>(view.rank - 3);
    std::swap(view.shape[d], view.shape[d + 1]);
    std::swap(view.strides[d], view.strides[d + 1]);
  }
  return view;
}

}  // namespace flash3::tools
