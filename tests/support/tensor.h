// Tensors that tests own: any dtype and layout, in guarded memory, poisoned until filled.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flash3/tensor.h"
#include "support/memory.h"
#include "support/random.h"

namespace flash3::test {

// How a tensor lies in memory. The last dimension is always contiguous and innermost.
struct Layout {
  std::vector<int> order;            // dimensions from the outermost in memory; empty: as they are numbered
  std::vector<std::int64_t> before;  // elements of memory along each dimension that come before the tensor; empty: none
  std::vector<std::int64_t> after;   // and after
  unsigned reversed = 0;             // bit d: dimension d is walked backwards
  unsigned expanded = 0;             // bit d: dimension d has stride 0 (inputs only)
};

// One of: as numbered, permuted, padded rows, a slice of something larger, reversed, expanded (if it may be).
Layout random_layout(Random& random, int rank, bool may_expand);

class Tensor {
 public:
  // Absent.
  Tensor() = default;

  // Poisoned memory of its own.
  Tensor(DType dtype, std::vector<std::int64_t> shape, const Layout& layout = {},
         GuardedBuffer::Against side = GuardedBuffer::Against::end);

  // Tensors of one dtype interleaved in one buffer along dimension `along`, as a packed query-key-value projection is.
  // Their other dimensions are equal.
  static std::vector<Tensor> packed(DType dtype, const std::vector<std::vector<std::int64_t>>& shapes, int along);

  explicit operator bool() const { return buffer_ != nullptr; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  DType dtype() const { return view_.dtype; }
  std::int64_t numel() const { return view_.numel(); }
  const TensorView& view() const { return view_; }
  GuardedBuffer& buffer() const { return *buffer_; }

  // Elements by their row-major number.
  double get(std::int64_t n) const;
  void set(std::int64_t n, double x);
  void set_poison(std::int64_t n);
  bool is_poison(std::int64_t n) const;
  std::vector<double> values() const;
  void assign(std::span<const double> values);

  // The same elements in another dtype, laid out as numbered. Poison stays NaN.
  Tensor to(DType dtype) const;

  // Fills its whole buffer.
  void poison_buffer();

  // Everything between the guard pages, as it is now.
  std::vector<std::byte> image() const;

  // Copies the bytes of the elements n with may[n] from one image of its buffer into another: what is left different
  // was changed without leave.
  void excuse(std::vector<std::byte>& now, const std::vector<std::byte>& earlier, const std::vector<bool>& may) const;

  // Whether every element has the bits of the other's.
  bool same_bits(const Tensor& other) const;

 private:
  std::int64_t offset(std::int64_t n) const;  // in elements, from view_.data

  std::shared_ptr<GuardedBuffer> buffer_;
  std::vector<std::int64_t> shape_;
  TensorView view_;
};

// A view of the given shape and strides.
TensorView make_view(void* data, DType dtype, std::span<const std::int64_t> shape,
                     std::span<const std::int64_t> strides);

// Elements of a dtype at an address, to and from double, rounding once.
double load(const void* element, DType dtype);
void store(void* element, DType dtype, double x);

// x as the dtype holds it.
double rounded(double x, DType dtype);

// The distance from 1 to the next number.
double ulp_of(DType dtype);

}  // namespace flash3::test
