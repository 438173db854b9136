// How a Python object becomes a tensor view, fastest way first; and the refusals of what cannot.
#include "tensor.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flash3/dlpack.h"

namespace nb = nanobind;

namespace flash3::python {

namespace {

std::string text_of(nb::handle object) { return nb::cast<std::string>(nb::str(object)); }

}  // namespace

std::string name_of_type(nb::handle object) { return text_of(nb::object(object.type().attr("__name__"))); }

namespace {

constexpr const char* accepted_dtypes = "float32, float16, bfloat16, float8_e4m3fn, float64 and int32 (lengths)";

std::string dtype_text(nb::handle object) {
  return nb::hasattr(object, "dtype") ? text_of(nb::object(object.attr("dtype"))) : name_of_type(object);
}

// The exchange API of a tensor class, if it has one of a version that we read. A process knows few tensor classes:
// the answer is kept for each, with a reference to the class so that its address is not used again.
const dlpack::ExchangeApi* exchange_api(nb::handle type) {
  struct Known {
    PyObject* type;
    const dlpack::ExchangeApi* api;
  };
  static std::vector<Known> known;
  for (const Known& k : known) {
    if (k.type == type.ptr()) return k.api;
  }
  const dlpack::ExchangeApi* api = nullptr;
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api != nullptr && api->version.major != 1) api = api->previous;
    if (api != nullptr && api->borrow == nullptr) api = nullptr;
  }
  constexpr std::size_t most_classes = 64;
  if (known.size() < most_classes) known.push_back({type.inc_ref().ptr(), api});
  return api;
}

// Data types that NumPy learns from ml_dtypes cannot pass the buffer protocol: such an array is read as the integers of
// the same size. Known by the addresses of the array's class and of its dtype, of which NumPy has one a type.
struct ExtensionDtype {
  PyObject* array_type;
  PyObject* object;
  DType dtype;
  const char* integers;
};

std::vector<ExtensionDtype>& extension_dtypes() {
  static std::vector<ExtensionDtype> known;
  return known;
}

const ExtensionDtype* known_extension_dtype(nb::handle array) {
  const auto& all = extension_dtypes();
  nb::object dtype;
  for (const ExtensionDtype& known : all) {
    if (known.array_type != array.type().ptr()) continue;
    if (!dtype) dtype = array.attr("dtype");
    if (known.object == dtype.ptr()) return &known;
  }
  return nullptr;
}

const ExtensionDtype* learn_extension_dtype(nb::handle array) {
  if (!nb::hasattr(array, "__array_interface__") || !nb::hasattr(array, "dtype")) return nullptr;
  nb::object dtype = array.attr("dtype");
  const std::string name = text_of(dtype);
  DType code = DType::bfloat16;
  const char* integers = "uint16";
  if (name == "float8_e4m3fn") {
    code = DType::float8_e4m3;
    integers = "uint8";
  } else if (name != "bfloat16") {
    return nullptr;
  }
  extension_dtypes().push_back({array.type().inc_ref().ptr(), dtype.release().ptr(), code, integers});
  return &extension_dtypes().back();
}

std::optional<DType> dtype_of_format(const char* format, Py_ssize_t itemsize) {
  std::string_view text = format == nullptr ? "B" : format;
  if (text.size() == 2 && (text[0] == '@' || text[0] == '=' || text[0] == '<')) text.remove_prefix(1);
  if (text == "f" && itemsize == 4) return DType::float32;
  if (text == "e" && itemsize == 2) return DType::float16;
  if (text == "d" && itemsize == 8) return DType::float64;
  if ((text == "i" || text == "l") && itemsize == 4) return DType::int32;
  return std::nullopt;
}

[[noreturn]] void refuse(const char* name, const std::string& message) {
  throw nb::value_error((std::string(name) + ": " + message).c_str());
}

}  // namespace

std::uintptr_t CallStream::for_dlpack() const {
  constexpr std::uintptr_t legacy_default = 1;
  return get() == nullptr ? legacy_default : reinterpret_cast<std::uintptr_t>(get());
}

Tensor::Tensor(nb::handle object, const char* name, Access access, CallStream& stream)
    : object_(object), name_(name), access_(access), stream_(stream) {
  try {
    if (!borrow() && !read_buffer()) read_dlpack();
  } catch (...) {
    release();
    throw;
  }
}

Tensor::~Tensor() { release(); }

void Tensor::release() {
  if (buffer_) PyBuffer_Release(&*buffer_);
  if (managed_ != nullptr && managed_->deleter != nullptr) managed_->deleter(managed_);
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
}

bool Tensor::borrow() {
  const dlpack::ExchangeApi* api = exchange_api(object_.type());
  if (api == nullptr) return false;
  dlpack::Tensor tensor{};
  if (api->borrow(object_.ptr(), &tensor) != 0) {
    nb::python_error error;
    nb::raise_from(error, PyExc_ValueError, "%s: %s", name_, "the tensor's memory cannot be read");
  }
  take(tensor);
  if (view_.device.type == DeviceType::cuda && !stream_.stream_) {
    void* current = nullptr;
    if (api->current_stream == nullptr) {
      learn_stream(view_.device.index);
    } else if (api->current_stream(detail::dlpack_cuda, view_.device.index, &current) != 0) {
      nb::python_error error;
      nb::raise_from(error, PyExc_RuntimeError, "%s: %s", name_, "the current stream of its device cannot be had");
    } else {
      stream_.stream_ = current;
    }
  }
  return true;
}

// Where a tensor's class does not tell its framework's current stream, Python code that knows the framework does.
void Tensor::learn_stream(int device_index) {
  if (stream_.stream_) return;
  const nb::object find = nb::module_::import_("flash3._streams").attr("current_stream");
  const auto stream = nb::cast<std::uintptr_t>(find(object_, device_index));
  stream_.stream_ = reinterpret_cast<void*>(stream);
}

bool Tensor::read_buffer() {
  if (!PyObject_CheckBuffer(object_.ptr())) return false;
  constexpr int flags = PyBUF_RECORDS_RO;  // shape, strides and format; writable or not
  Py_buffer buffer;
  const ExtensionDtype* extension = known_extension_dtype(object_);
  if (extension == nullptr && PyObject_GetBuffer(object_.ptr(), &buffer, flags) != 0) {
    nb::python_error unreadable;  // takes Python's error, so that we may go on
    extension = learn_extension_dtype(object_);
    if (extension == nullptr) {
      if (nb::hasattr(object_, "__array_interface__")) refuse_dtype();
      if (nb::hasattr(object_, "__dlpack__")) return false;
      nb::raise_from(unreadable, PyExc_ValueError, "%s: %s", name_, "the buffer cannot be read");
    }
  }
  if (extension != nullptr) {
    const nb::object integers = object_.attr("view")(extension->integers);
    if (PyObject_GetBuffer(integers.ptr(), &buffer, flags) != 0) nb::raise_python_error();
  }
  buffer_ = buffer;
  take(buffer, extension == nullptr ? std::nullopt : std::optional(extension->dtype));
  return true;
}

void Tensor::read_dlpack() {
  if (!nb::hasattr(object_, "__dlpack__")) {
    throw nb::type_error((std::string(name_) + ": is " + name_of_type(object_) +
                          ", accepted is a NumPy array, a PyTorch tensor, a JAX array, or any object with DLPack or " +
                          "the buffer protocol")
                             .c_str());
  }
  nb::object capsule;
  try {
    capsule = export_dlpack();
  } catch (nb::python_error& error) {
    const std::string why = text_of(error.value());
    nb::raise_from(error, PyExc_ValueError, "%s: cannot be read through DLPack: %s", name_, why.c_str());
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* versioned = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned") != 0) nb::raise_python_error();
    versioned_ = versioned;
    if (versioned->version.major != 1) {
      refuse(name_, "DLPack version is " + std::to_string(versioned->version.major) + ", accepted are 0 and 1");
    }
    if (access_ == Access::write && (versioned->flags & dlpack::read_only_flag) != 0) refuse_read_only();
    take(versioned->tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    managed_ = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) nb::raise_python_error();
    take(managed_->tensor);
  } else {
    refuse(name_, "__dlpack__ of " + name_of_type(object_) + " returned no DLPack capsule");
  }
}

// Asks for the tensor, safe to use on the call's stream.
nb::object Tensor::export_dlpack() {
  nb::dict keywords;
  if (nb::hasattr(object_, "__dlpack_device__")) {
    const auto device = nb::cast<std::pair<int, int>>(object_.attr("__dlpack_device__")());
    if (device.first == detail::dlpack_cuda || device.first == detail::dlpack_cuda_managed) {
      learn_stream(device.second);
      keywords["stream"] = stream_.for_dlpack();
    }
  }
  const nb::object produce = object_.attr("__dlpack__");
  try {
    return produce(nb::arg("max_version") = nb::make_tuple(1, 1), **keywords);
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // a producer older than version 1 takes no max_version
  }
  return produce(**keywords);
}

void Tensor::take(const dlpack::Tensor& tensor) {
  try {
    view_ = view_of(tensor, name_);
  } catch (const InvalidArgument& error) {
    throw nb::value_error((error.what() + std::string(" (its dtype is ") + dtype_text(object_) + ")").c_str());
  }
}

void Tensor::take(const Py_buffer& buffer, std::optional<DType> extension_dtype) {
  const auto dtype = extension_dtype ? extension_dtype : dtype_of_format(buffer.format, buffer.itemsize);
  if (!dtype) refuse_dtype();
  if (access_ == Access::write && buffer.readonly != 0) refuse_read_only();
  check_rank(buffer.ndim);
  view_.dtype = *dtype;
  view_.device = {DeviceType::cpu, 0};
  view_.rank = buffer.ndim;
  for (int d = 0; d < buffer.ndim; ++d) {
    const auto i = static_cast<std::size_t>(d);
    view_.shape[i] = buffer.shape[d];
    if (buffer.strides[d] % buffer.itemsize != 0 && buffer.shape[d] > 1) {
      refuse(name_, "stride of dimension " + std::to_string(d) + " is " + std::to_string(buffer.strides[d]) +
                        " bytes, accepted is a multiple of the element's " + std::to_string(buffer.itemsize));
    }
    view_.strides[i] = buffer.strides[d] / buffer.itemsize;
  }
  view_.data = buffer.buf;
}

void Tensor::check_rank(std::int64_t rank) const {
  if (rank < 0 || rank > TensorView::max_rank) {
    refuse(name_, "rank is " + std::to_string(rank) + ", accepted are 0 to " + std::to_string(TensorView::max_rank));
  }
}

void Tensor::refuse_dtype() const {
  refuse(name_, "dtype is " + dtype_text(object_) + ", accepted are " + accepted_dtypes);
}

void Tensor::refuse_read_only() const { refuse(name_, "is read-only, accepted is memory that may be written"); }

}  // namespace flash3::python
