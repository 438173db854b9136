// Attention as XLA calls it: buffers and attributes become flash3's arguments, errors become XLA's. Runs without the
// Python interpreter.
#include "jax.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <string_view>

#include "flash3/flash3.h"

namespace flash3::python {
namespace {

constexpr const char* mismatch = "flash3.jax and its binary do not belong together";

xla::Error* error(const xla::CallFrame& frame, xla::ErrorCode code, const char* message) {
  xla::ErrorCreateArgs args{sizeof(xla::ErrorCreateArgs), nullptr, message, code};
  return frame.api->create_error(&args);
}

TensorView view_of(const xla::Buffer& buffer, Device device, const char* name) {
  TensorView view;
  switch (buffer.dtype) {
    case xla::Type::s32:
      view.dtype = DType::int32;
      break;
    case xla::Type::f16:
      view.dtype = DType::float16;
      break;
    case xla::Type::f32:
      view.dtype = DType::float32;
      break;
    case xla::Type::f64:
      view.dtype = DType::float64;
      break;
    case xla::Type::bf16:
      view.dtype = DType::bfloat16;
      break;
    case xla::Type::f8e4m3fn:
      view.dtype = DType::float8_e4m3;
      break;
    default:
      throw InvalidArgument(
          name, "XLA's type " + std::to_string(static_cast<int>(buffer.dtype)) + " is no data type of flash3");
  }
  if (buffer.rank > TensorView::max_rank) throw InvalidArgument(name, "rank is above 6");
  view.data = buffer.data;
  view.device = device;
  view.rank = static_cast<int>(buffer.rank);
  std::int64_t stride = 1;
  for (int d = view.rank - 1; d >= 0; --d) {
    const auto i = static_cast<std::size_t>(d);
    view.shape[i] = buffer.dims[d];
    view.strides[i] = stride;
    stride *= std::max<std::int64_t>(buffer.dims[d], 1);
  }
  return view;
}

// Buffers handed out one after the other.
class Queue {
 public:
  Queue(const xla::Buffers& buffers, Device device) : buffers_(buffers), device_(device) {}
  TensorView next(const char* name) {
    if (index_ >= buffers_.size || buffers_.kinds[index_] != xla::buffer_kind) throw Error(mismatch);
    return view_of(*buffers_.buffers[index_++], device_, name);
  }

 private:
  const xla::Buffers& buffers_;
  Device device_;
  std::int64_t index_ = 0;
};

template <class Value>
Value attribute(const xla::CallFrame& frame, std::string_view name, xla::Type type) {
  const xla::Attributes& all = frame.attributes;
  for (std::int64_t i = 0; i < all.size; ++i) {
    if (std::string_view(all.names[i]->data, all.names[i]->size) != name) continue;
    const auto* scalar = static_cast<const xla::Scalar*>(all.values[i]);
    if (all.kinds[i] != xla::scalar_kind || scalar->dtype != type) break;
    Value value;
    std::memcpy(&value, scalar->value, sizeof value);
    return value;
  }
  throw Error(mismatch);
}

std::int64_t integer(const xla::CallFrame& frame, std::string_view name) {
  return attribute<std::int64_t>(frame, name, xla::Type::s64);
}

double number(const xla::CallFrame& frame, std::string_view name) {
  return attribute<double>(frame, name, xla::Type::f64);
}

template <class Args>
void read_inputs(const xla::CallFrame& frame, Queue& queue, Args& args) {
  args.query = queue.next("query");
  args.key = queue.next("key");
  args.value = queue.next("value");
  const std::int64_t present = integer(frame, "present");
  int bit = 0;
  const auto optional = [&](std::optional<ConstTensorView>& view, const char* name) {
    if ((present >> bit++ & 1) != 0) view = queue.next(name);
  };
  optional(args.cu_seqlens_q, "cu_seqlens_q");
  optional(args.cu_seqlens_k, "cu_seqlens_k");
  optional(args.seqused_q, "seqused_q");
  optional(args.seqused_k, "seqused_k");
  optional(args.sinks, "sinks");
  optional(args.bias, "bias");

  AttentionOptions& options = args.options;
  options.softmax_scale = number(frame, "softmax_scale");
  options.causal = integer(frame, "causal") != 0;
  options.alignment = integer(frame, "top_left") != 0 ? MaskAlignment::top_left : MaskAlignment::bottom_right;
  const std::int64_t left = integer(frame, "window_left"), right = integer(frame, "window_right");
  if (left >= 0) options.window_left = left;
  if (right >= 0) options.window_right = right;
  const std::int64_t most_q = integer(frame, "max_seqlen_q"), most_k = integer(frame, "max_seqlen_k");
  if (most_q >= 0) args.max_seqlen_q = most_q;
  if (most_k >= 0) args.max_seqlen_k = most_k;
  options.softcap = number(frame, "softcap");
}

// Where a call's buffers are and its work is queued.
struct Place {
  Device device;
  void* stream = nullptr;
};

// XLA's own answer is not in every version of its interface: the driver knows where memory is.
int gpu_of(const void* memory) {
  constexpr int device_ordinal = 9;  // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
  using Ask = int(void*, int, std::uintptr_t);
  static Ask* const ask = [] {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    return driver == nullptr ? nullptr : reinterpret_cast<Ask*>(dlsym(driver, "cuPointerGetAttribute"));
  }();
  int ordinal = 0;
  if (ask == nullptr || ask(&ordinal, device_ordinal, reinterpret_cast<std::uintptr_t>(memory)) != 0) {
    throw DeviceError("the CUDA driver does not say which GPU the arrays are on");
  }
  return ordinal;
}

Place gpu_place(const xla::CallFrame& frame) {
  Place place{{DeviceType::cuda, 0}};
  xla::StreamGetArgs args{sizeof(xla::StreamGetArgs), nullptr, frame.context, nullptr};
  if (frame.api->get_stream(&args) != nullptr) throw DeviceError("XLA gives no stream");
  place.stream = args.stream;
  for (std::int64_t i = 0; i < frame.arguments.size; ++i) {
    if (frame.arguments.kinds[i] != xla::buffer_kind) continue;
    const void* data = frame.arguments.buffers[i]->data;
    if (data == nullptr) continue;
    place.device.index = gpu_of(data);
    break;
  }
  return place;
}

Execution read_execution(const xla::CallFrame& frame, const Place& place) {
  Execution execution;
  execution.engine = static_cast<Engine>(integer(frame, "engine"));
  execution.num_threads = static_cast<int>(integer(frame, "num_threads"));
  execution.stream = place.stream;
  return execution;
}

// Results arrive filled with what rows hold that belong to no sequence, where there may be any.
void run_forward(const xla::CallFrame& frame, const Place& place) {
  Queue arguments(frame.arguments, place.device), results(frame.results, place.device);
  ForwardArgs args;
  read_inputs(frame, arguments, args);
  args.out = results.next("out");
  args.lse = results.next("lse");
  forward(args, read_execution(frame, place));
}

void run_backward(const xla::CallFrame& frame, const Place& place) {
  Queue arguments(frame.arguments, place.device), results(frame.results, place.device);
  BackwardArgs args;
  args.d_out = arguments.next("d_out");
  args.d_lse = arguments.next("d_lse");
  args.out = arguments.next("out");
  args.lse = arguments.next("lse");
  read_inputs(frame, arguments, args);
  args.d_query = results.next("d_query");
  args.d_key = results.next("d_key");
  args.d_value = results.next("d_value");
  if (args.sinks) args.d_sinks = results.next("d_sinks");
  if (args.bias) args.d_bias = results.next("d_bias");
  backward(args, read_execution(frame, place));
}

// XLA asks a handler for its version when it is registered. We use nothing that a minor version may add or lack, and
// so speak the caller's own.
xla::Error* answer_metadata(const xla::CallFrame& frame) {
  auto* extension = reinterpret_cast<xla::MetadataExtension*>(frame.extensions);
  const int major = frame.api->version.major_version, minor = frame.api->version.minor_version;
  if (major != xla::known_major_version) {
    return error(frame, xla::ErrorCode::unimplemented, "flash3 knows version 0 of XLA's foreign-function interface");
  }
  extension->metadata->version = {sizeof(xla::Version), nullptr, major, minor};
  extension->metadata->traits = 0;
  return nullptr;
}

template <class Run>
xla::Error* handle(const xla::CallFrame& frame, Run run, bool on_gpu) {
  if (frame.extensions != nullptr && frame.extensions->type == xla::metadata_extension) return answer_metadata(frame);
  try {
    if (frame.stage != xla::execute_stage) throw Error(mismatch);
    run(frame, on_gpu ? gpu_place(frame) : Place{});
    return nullptr;
  } catch (const InvalidArgument& e) {
    return error(frame, xla::ErrorCode::invalid_argument, e.what());
  } catch (const Unsupported& e) {
    return error(frame, xla::ErrorCode::unimplemented, e.what());
  } catch (const std::bad_alloc&) {
    return error(frame, xla::ErrorCode::resource_exhausted, "flash3 could not have its workspace");
  } catch (const std::exception& e) {
    return error(frame, xla::ErrorCode::internal, e.what());
  }
}

}  // namespace

xla::Error* jax_forward(xla::CallFrame* frame) { return handle(*frame, run_forward, false); }
xla::Error* jax_backward(xla::CallFrame* frame) { return handle(*frame, run_backward, false); }
xla::Error* jax_forward_gpu(xla::CallFrame* frame) { return handle(*frame, run_forward, true); }
xla::Error* jax_backward_gpu(xla::CallFrame* frame) { return handle(*frame, run_backward, true); }

}  // namespace flash3::python
