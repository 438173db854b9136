// A problem in a few numbers, and the tensors that it stands for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flash3/attention.h"
#include "support/random.h"
#include "support/tensor.h"

namespace flash3::test {

// The lengths of one side. A fixed batch has the same room for every sequence.
struct Lengths {
  std::vector<std::int64_t> room;  // rows that each sequence owns
  std::vector<std::int64_t> used;  // of which it uses the first so many; empty: all of them
  bool varlen = false;
  std::int64_t tail = 0;  // varlen: rows of the tensor that belong to no sequence

  static Lengths fixed(std::int64_t batch, std::int64_t seqlen);
  static Lengths variable(std::vector<std::int64_t> lengths);

  std::int64_t batch() const { return static_cast<std::int64_t>(room.size()); }
  std::int64_t of(std::int64_t b) const { return (used.empty() ? room : used)[static_cast<std::size_t>(b)]; }
  // The first row of a sequence, counting the rows of all sequences together.
  std::int64_t first_row(std::int64_t b) const;
  std::int64_t total() const;    // rows of all sequences, and the tail
  std::int64_t longest() const;  // in room
};

struct BiasShape {
  bool per_sequence = false, per_head = false, per_query = false;
  bool float32 = true;  // else the case's dtype
};

struct Case {
  std::uint64_t seed = 1;  // of data and layouts
  DType dtype = DType::float32;
  std::int64_t heads_q = 1, heads_kv = 1, head_dim = 64, head_dim_v = 64;
  Lengths query = Lengths::fixed(1, 1), key = Lengths::fixed(1, 1);
  AttentionOptions options;
  bool sinks = false;
  std::optional<BiasShape> bias;
  bool d_lse = false;
  Distribution distribution = Distribution::normal;
  bool plain_layouts = true;  // else random ones
  int num_threads = 0;

  std::int64_t batch() const { return query.batch(); }
  double scale() const;
  // Whether query i of sequence b sees its key j: written out from the documentation of AttentionOptions, apart from
  // the mask that the library uses.
  bool sees(std::int64_t b, std::int64_t i, std::int64_t j) const;
  bool sees_any(std::int64_t b, std::int64_t i) const;

  // Element numbers, row-major, of (row i of sequence b, head, 0) in tensors with `heads` heads of `dim` elements.
  std::int64_t query_element(std::int64_t b, std::int64_t i, std::int64_t head, std::int64_t dim) const;
  std::int64_t key_element(std::int64_t b, std::int64_t j, std::int64_t head, std::int64_t dim) const;
  std::int64_t row_element(std::int64_t b, std::int64_t i, std::int64_t head) const;  // of lse
  std::int64_t bias_element(std::int64_t b, std::int64_t head, std::int64_t i, std::int64_t j) const;

  // One line.
  std::string to_string() const;
};

// A case of any kind, small enough to be quick: at most about `pairs` (query, key) pairs over all heads.
Case random_case(std::uint64_t seed, DType dtype, std::int64_t pairs = 1 << 15);

// The tensors of a case. Everything that must not be read holds poison, and so does everything that is to be written.
struct Tensors {
  Tensor query, key, value, out, lse;
  Tensor cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k;
  Tensor sinks, bias;
  Tensor d_out, d_lse;
  Tensor d_query, d_key, d_value, d_sinks, d_bias;

  explicit Tensors(const Case& c);

  // The same inputs in float64, plainly laid out, for the reference.
  Tensors to_float64() const;

 private:
  Tensors() = default;
};

// Arguments over a case's tensors, placed in an engine's memory for one call.
ForwardArgs forward_args(const Case& c, Tensors& t, Stay& stay);
BackwardArgs backward_args(const Case& c, Tensors& t, Stay& stay);

}  // namespace flash3::test
