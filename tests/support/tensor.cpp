// Strides from layouts; element access in every dtype.
#include "support/tensor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/half.h"

namespace flash3::test {

double load(const void* element, DType dtype) {
  switch (dtype) {
    case DType::float32:
      return *static_cast<const float*>(element);
    case DType::float16:
      return core::to_float(*static_cast<const core::float16*>(element));
    case DType::bfloat16:
      return core::to_float(*static_cast<const core::bfloat16*>(element));
    case DType::float64:
      return *static_cast<const double*>(element);
    case DType::int32:
      return *static_cast<const std::int32_t*>(element);
    case DType::float8_e4m3:
      break;
  }
  throw std::logic_error("no such dtype in the tests yet");
}

void store(void* element, DType dtype, double x) {
  switch (dtype) {
    case DType::float32:
      *static_cast<float*>(element) = static_cast<float>(x);
      return;
    case DType::float16:
      *static_cast<core::float16*>(element) = core::to_float16(x);
      return;
    case DType::bfloat16:
      *static_cast<core::bfloat16*>(element) = core::to_bfloat16(x);
      return;
    case DType::float64:
      *static_cast<double*>(element) = x;
      return;
    case DType::int32:
      *static_cast<std::int32_t*>(element) = static_cast<std::int32_t>(x);
      return;
    case DType::float8_e4m3:
      break;
  }
  throw std::logic_error("no such dtype in the tests yet");
}

double rounded(double x, DType dtype) {
  alignas(8) std::byte element[8];
  store(element, dtype, x);
  return load(element, dtype);
}

double ulp_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return 0x1p-10;
    case DType::bfloat16:
      return 0x1p-7;
    case DType::float64:
      return 0x1p-52;
    default:
      return 0x1p-23;
  }
}

TensorView make_view(void* data, DType dtype, std::span<const std::int64_t> shape,
                     std::span<const std::int64_t> strides) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), view.shape.begin());
  std::copy(strides.begin(), strides.end(), view.strides.begin());
  return view;
}

Layout random_layout(Random& random, int rank, bool may_expand) {
  Layout layout;
  const auto n = static_cast<std::size_t>(rank);
  switch (random.between(0, may_expand ? 5 : 4)) {
    case 0:
      break;
    case 1:  // permuted: the last dimension stays innermost
      layout.order.resize(n);
      std::iota(layout.order.begin(), layout.order.end(), 0);
      for (std::int64_t d = rank - 2; d > 0; --d) {
        std::swap(layout.order[static_cast<std::size_t>(d)],
                  layout.order[static_cast<std::size_t>(random.between(0, d))]);
      }
      break;
    case 2:  // padded rows
      layout.after.assign(n, 0);
      layout.after.back() = random.between(1, 40);
      break;
    case 3:  // a slice
      for (std::size_t d = 0; d < n; ++d) {
        layout.before.push_back(random.between(0, 2));
        layout.after.push_back(random.between(0, 2));
      }
      break;
    case 4:
      layout.reversed = static_cast<unsigned>(random.between(1, (1 << (rank - 1)) - 1));
      break;
    case 5:
      layout.expanded = 1u << random.between(0, std::max(rank - 2, 0));
      break;
  }
  return layout;
}

Tensor::Tensor(DType dtype, std::vector<std::int64_t> shape, const Layout& layout, GuardedBuffer::Against side)
    : shape_(std::move(shape)) {
  const std::size_t rank = shape_.size();
  std::vector<int> order = layout.order;
  if (order.empty()) {
    order.resize(rank);
    std::iota(order.begin(), order.end(), 0);
  }
  const auto at = [](const std::vector<std::int64_t>& v, std::size_t d) { return v.empty() ? 0 : v[d]; };
  std::vector<std::int64_t> strides(rank);
  std::int64_t size = 1, first = 0;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    const auto dimension = static_cast<std::size_t>(*d);
    const bool reversed = (layout.reversed >> *d & 1u) != 0 && dimension + 1 < rank;
    const bool expanded = (layout.expanded >> *d & 1u) != 0 && dimension + 1 < rank;
    const std::int64_t extent = expanded ? std::min<std::int64_t>(shape_[dimension], 1) : shape_[dimension];
    strides[dimension] = expanded ? 0 : reversed ? -size : size;
    first += size * (at(layout.before, dimension) + (reversed ? std::max<std::int64_t>(extent - 1, 0) : 0));
    size *= at(layout.before, dimension) + extent + at(layout.after, dimension);
  }
  const auto bytes = static_cast<std::int64_t>(size_of(dtype));
  buffer_ = std::make_shared<GuardedBuffer>(static_cast<std::size_t>(size * bytes), side);
  view_ = make_view(buffer_->data() + first * bytes, dtype, shape_, strides);
}

std::vector<Tensor> Tensor::packed(DType dtype, const std::vector<std::vector<std::int64_t>>& shapes, int along) {
  std::vector<std::int64_t> whole_shape = shapes.front();
  const auto dimension = static_cast<std::size_t>(along);
  whole_shape[dimension] = 0;
  for (const auto& shape : shapes) whole_shape[dimension] += shape[dimension];
  const Tensor whole(dtype, whole_shape);
  std::vector<Tensor> parts;
  std::int64_t start = 0;
  for (const auto& shape : shapes) {
    Tensor part = whole;
    part.shape_ = shape;
    const auto bytes = static_cast<std::int64_t>(size_of(dtype));
    part.view_ = make_view(static_cast<std::byte*>(whole.view_.data) + start * whole.view_.strides[dimension] * bytes,
                           dtype, shape, {whole.view_.strides.data(), shape.size()});
    start += shape[dimension];
    parts.push_back(std::move(part));
  }
  return parts;
}

std::int64_t Tensor::offset(std::int64_t n) const {
  std::int64_t offset = 0;
  for (std::size_t d = shape_.size(); d-- > 0;) {
    offset += n % shape_[d] * view_.strides[d];
    n /= shape_[d];
  }
  return offset;
}

double Tensor::get(std::int64_t n) const {
  return load(static_cast<const std::byte*>(view_.data) + offset(n) * static_cast<std::int64_t>(size_of(dtype())),
              dtype());
}

void Tensor::set(std::int64_t n, double x) {
  store(static_cast<std::byte*>(view_.data) + offset(n) * static_cast<std::int64_t>(size_of(dtype())), dtype(), x);
}

void Tensor::set_poison(std::int64_t n) {
  const std::size_t bytes = size_of(dtype());
  std::fill_n(static_cast<std::byte*>(view_.data) + offset(n) * static_cast<std::int64_t>(bytes), bytes, poison);
}

bool Tensor::is_poison(std::int64_t n) const {
  const std::size_t bytes = size_of(dtype());
  const std::byte* element = static_cast<const std::byte*>(view_.data) + offset(n) * static_cast<std::int64_t>(bytes);
  return std::all_of(element, element + bytes, [](std::byte b) { return b == poison; });
}

std::vector<double> Tensor::values() const {
  std::vector<double> values(static_cast<std::size_t>(numel()));
  for (std::size_t n = 0; n < values.size(); ++n) values[n] = get(static_cast<std::int64_t>(n));
  return values;
}

void Tensor::assign(std::span<const double> values) {
  for (std::size_t n = 0; n < values.size(); ++n) set(static_cast<std::int64_t>(n), values[n]);
}

Tensor Tensor::to(DType dtype) const {
  if (!*this) return {};
  Tensor other(dtype, shape_);
  for (std::int64_t n = 0; n < numel(); ++n) other.set(n, get(n));
  return other;
}

void Tensor::poison_buffer() { std::fill(buffer_->whole().begin(), buffer_->whole().end(), poison); }

std::vector<std::byte> Tensor::image() const { return {buffer_->whole().begin(), buffer_->whole().end()}; }

void Tensor::excuse(std::vector<std::byte>& now, const std::vector<std::byte>& earlier,
                    const std::vector<bool>& may) const {
  const auto bytes = static_cast<std::int64_t>(size_of(dtype()));
  const std::int64_t start = static_cast<const std::byte*>(view_.data) - buffer_->whole().data();
  for (std::int64_t n = 0; n < static_cast<std::int64_t>(may.size()); ++n) {
    if (!may[static_cast<std::size_t>(n)]) continue;
    const std::int64_t at = start + offset(n) * bytes;
    std::copy_n(earlier.begin() + at, bytes, now.begin() + at);
  }
}

bool Tensor::same_bits(const Tensor& other) const {
  const auto bytes = static_cast<std::int64_t>(size_of(dtype()));
  for (std::int64_t n = 0; n < numel(); ++n) {
    if (std::memcmp(static_cast<const std::byte*>(view_.data) + offset(n) * bytes,
                    static_cast<const std::byte*>(other.view_.data) + other.offset(n) * bytes,
                    static_cast<std::size_t>(bytes)) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace flash3::test
