// A Python object as a tensor view: through DLPack's exchange API, the buffer protocol, or `__dlpack__`, without a
// copy.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <string>

#include "dlpack.h"
#include "flash3/tensor.h"

namespace flash3::python {

// The name of an object's class, for messages.
std::string name_of_type(nanobind::handle object);

enum class Access { read, write };

// The CUDA stream that a call's work is queued on: the one that is current in the framework of the first GPU tensor.
class CallStream {
 public:
  // cudaStream_t; null (the default stream) also where no tensor is on a GPU.
  void* get() const { return stream_.value_or(nullptr); }
  // DLPack's number for it, for the producers of other tensors to wait for.
  std::uintptr_t for_dlpack() const;

 private:
  friend class Tensor;
  std::optional<void*> stream_;
};

// One tensor argument: a view of the object's bytes, and what keeps them in place while an engine works on them. The
// caller keeps the object itself alive. Made and destroyed with the interpreter lock held.
class Tensor {
 public:
  // Throws ValueError or TypeError that names the argument.
  Tensor(nanobind::handle object, const char* name, Access access, CallStream& stream);
  ~Tensor();
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  const TensorView& view() const { return view_; }

 private:
  bool borrow();
  bool read_buffer();
  void read_dlpack();
  nanobind::object export_dlpack();
  void learn_stream(int device_index);
  void release();
  void take(const dlpack::Tensor& tensor);
  void take(const Py_buffer& buffer, std::optional<DType> extension_dtype);
  void check_rank(std::int64_t rank) const;
  [[noreturn]] void refuse_dtype() const;
  [[noreturn]] void refuse_read_only() const;

  nanobind::handle object_;
  const char* name_;
  Access access_;
  CallStream& stream_;
  TensorView view_;
  std::optional<Py_buffer> buffer_;
  dlpack::Managed* managed_ = nullptr;
  dlpack::ManagedVersioned* versioned_ = nullptr;
};

// A tensor that may be None.
class OptionalTensor {
 public:
  OptionalTensor(nanobind::handle object, const char* name, Access access, CallStream& stream) {
    if (!object.is_none()) tensor_.emplace(object, name, access, stream);
  }
  template <class View>
  void assign_to(std::optional<View>& view) const {
    if (tensor_) view = tensor_->view();
  }

 private:
  std::optional<Tensor> tensor_;
};

}  // namespace flash3::python
