// The C interface: structs become the C++ arguments, exceptions become status codes.
#include "flash3/c_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "flash3/attention.h"
#include "flash3/check.h"
#include "flash3/merge.h"

static_assert(FLASH3_FLOAT32 == static_cast<int>(flash3::DType::float32));
static_assert(FLASH3_FLOAT16 == static_cast<int>(flash3::DType::float16));
static_assert(FLASH3_BFLOAT16 == static_cast<int>(flash3::DType::bfloat16));
static_assert(FLASH3_FLOAT8_E4M3 == static_cast<int>(flash3::DType::float8_e4m3));
static_assert(FLASH3_FLOAT64 == static_cast<int>(flash3::DType::float64));
static_assert(FLASH3_INT32 == static_cast<int>(flash3::DType::int32));
static_assert(FLASH3_CPU == static_cast<int>(flash3::DeviceType::cpu));
static_assert(FLASH3_CUDA == static_cast<int>(flash3::DeviceType::cuda));
static_assert(FLASH3_ENGINE_AUTOMATIC == static_cast<int>(flash3::Engine::automatic));
static_assert(FLASH3_ENGINE_CUDA == static_cast<int>(flash3::Engine::cuda));
static_assert(FLASH3_ENGINE_CPU == static_cast<int>(flash3::Engine::cpu));
static_assert(FLASH3_ENGINE_REFERENCE == static_cast<int>(flash3::Engine::reference));
static_assert(FLASH3_ENGINE_EMULATOR == static_cast<int>(flash3::Engine::emulator));
static_assert(FLASH3_BOTTOM_RIGHT == static_cast<int>(flash3::MaskAlignment::bottom_right));
static_assert(FLASH3_TOP_LEFT == static_cast<int>(flash3::MaskAlignment::top_left));
static_assert(FLASH3_MAX_RANK == flash3::TensorView::max_rank);

struct flash3_plan {
  flash3::Plan plan;
  std::string text;
};

struct flash3_hardware {
  flash3::HardwareReport report;
  std::string text;
};

namespace {

using flash3::InvalidArgument;

struct LastError {
  std::string text, argument;
  bool text_is_lost = false;  // there was no memory for it
};
thread_local LastError last_error;

flash3_status fail(flash3_status status, const char* text, const char* argument = "") noexcept {
  try {
    last_error = {text, argument, false};
  } catch (...) {
    last_error.text_is_lost = true;
  }
  return status;
}

// Runs `body`; what it throws becomes a status and the thread's last error.
template <class Body>
flash3_status guarded(Body body) noexcept {
  try {
    body();
    last_error.text.clear();
    last_error.argument.clear();
    last_error.text_is_lost = false;
    return FLASH3_OK;
  } catch (const InvalidArgument& e) {
    return fail(FLASH3_INVALID_ARGUMENT, e.what(), e.argument().c_str());
  } catch (const flash3::Unsupported& e) {
    return fail(FLASH3_UNSUPPORTED, e.what());
  } catch (const flash3::DeviceError& e) {
    return fail(FLASH3_DEVICE_ERROR, e.what());
  } catch (const std::bad_alloc&) {
    return fail(FLASH3_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return fail(FLASH3_INTERNAL_ERROR, e.what());
  } catch (...) {
    return fail(FLASH3_INTERNAL_ERROR, "an exception of an unknown type");
  }
}

// The caller's struct as this version knows it. Fields that an older caller lacks are zero; fields that a newer caller
// has beyond ours must be zero, as we cannot honour them. `first_size`: the size of the struct's first version.
template <class Struct>
Struct read_struct(const Struct* given, const char* name, std::size_t first_size) {
  static_assert(std::is_trivially_copyable_v<Struct>);
  if (given == nullptr) throw InvalidArgument(name, "is null");
  const std::size_t size = given->struct_size;
  if (size < first_size) {
    throw InvalidArgument(name, fmt::format("struct_size is {}, accepted is sizeof({}), {} or more: start from its "
                                            "_INIT macro",
                                            size, name, first_size));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(Struct); i < size; ++i) {
    if (bytes[i] != 0) {
      throw InvalidArgument(name, fmt::format("byte {} of the struct is set, but this version of flash3 ({}) knows "
                                              "only {} bytes",
                                              i, flash3_version(), sizeof(Struct)));
    }
  }
  Struct known{};
  std::memcpy(&known, bytes, std::min(size, sizeof(Struct)));
  return known;
}

flash3::TensorView tensor(const flash3_tensor* given, const char* name) {
  if (given == nullptr) throw InvalidArgument(name, "is null, but it is not optional");
  if (given->rank < 0 || given->rank > FLASH3_MAX_RANK) {
    throw InvalidArgument(name, fmt::format("rank is {}, accepted are 0 to {}", given->rank, FLASH3_MAX_RANK));
  }
  if (given->dtype < FLASH3_FLOAT32 || given->dtype > FLASH3_INT32) {
    throw InvalidArgument(name, fmt::format("dtype code {} is not a flash3_dtype", given->dtype));
  }
  if (given->device_type != FLASH3_CPU && given->device_type != FLASH3_CUDA) {
    throw InvalidArgument(name, fmt::format("device type {} is not a flash3_device_type", given->device_type));
  }
  flash3::TensorView view;
  view.data = given->data;
  view.dtype = static_cast<flash3::DType>(given->dtype);
  view.device = {static_cast<flash3::DeviceType>(given->device_type), given->device_index};
  view.rank = given->rank;
  std::copy_n(given->shape, FLASH3_MAX_RANK, view.shape.begin());
  std::copy_n(given->strides, FLASH3_MAX_RANK, view.strides.begin());
  return view;
}

template <class View>
void set_optional(std::optional<View>& to, const flash3_tensor* given, const char* name) {
  if (given != nullptr) to = tensor(given, name);
}

flash3::AttentionOptions options(const flash3_options* given) {
  flash3::AttentionOptions options;
  if (given == nullptr) return options;
  const flash3_options known = read_struct(given, "flash3_options", sizeof(flash3_options));
  if (known.softmax_scale != nullptr) options.softmax_scale = *known.softmax_scale;
  if (known.window_left != nullptr) options.window_left = *known.window_left;
  if (known.window_right != nullptr) options.window_right = *known.window_right;
  options.softcap = known.softcap;
  if (known.causal != 0 && known.causal != 1) {
    throw InvalidArgument("causal", fmt::format("is {}, accepted are 0 and 1", known.causal));
  }
  options.causal = known.causal == 1;
  if (known.alignment != FLASH3_BOTTOM_RIGHT && known.alignment != FLASH3_TOP_LEFT) {
    throw InvalidArgument("alignment", fmt::format("{} is not a flash3_mask_alignment", known.alignment));
  }
  options.alignment = static_cast<flash3::MaskAlignment>(known.alignment);
  return options;
}

flash3::Execution execution(const flash3_execution* given) {
  flash3::Execution execution;
  if (given == nullptr) return execution;
  const flash3_execution known = read_struct(given, "flash3_execution", sizeof(flash3_execution));
  if (known.engine < FLASH3_ENGINE_AUTOMATIC || known.engine > FLASH3_ENGINE_EMULATOR) {
    throw InvalidArgument("engine", fmt::format("{} is not a flash3_engine", known.engine));
  }
  execution.engine = static_cast<flash3::Engine>(known.engine);
  execution.num_threads = known.num_threads;
  execution.stream = known.stream;
  return execution;
}

// What forward and backward arguments share.
template <class Args, class Given>
void set_common(Args& args, const Given& known) {
  args.query = tensor(known.query, "query");
  args.key = tensor(known.key, "key");
  args.value = tensor(known.value, "value");
  args.out = tensor(known.out, "out");
  set_optional(args.cu_seqlens_q, known.cu_seqlens_q, "cu_seqlens_q");
  set_optional(args.cu_seqlens_k, known.cu_seqlens_k, "cu_seqlens_k");
  set_optional(args.seqused_q, known.seqused_q, "seqused_q");
  set_optional(args.seqused_k, known.seqused_k, "seqused_k");
  if (known.max_seqlen_q != nullptr) args.max_seqlen_q = *known.max_seqlen_q;
  if (known.max_seqlen_k != nullptr) args.max_seqlen_k = *known.max_seqlen_k;
  set_optional(args.sinks, known.sinks, "sinks");
  set_optional(args.bias, known.bias, "bias");
  args.options = options(known.options);
}

flash3::ForwardArgs arguments(const flash3_forward_args* given) {
  const flash3_forward_args known = read_struct(given, "flash3_forward_args", sizeof(flash3_forward_args));
  flash3::ForwardArgs args;
  set_common(args, known);
  set_optional(args.lse, known.lse, "lse");
  return args;
}

flash3::BackwardArgs arguments(const flash3_backward_args* given) {
  const flash3_backward_args known = read_struct(given, "flash3_backward_args", sizeof(flash3_backward_args));
  flash3::BackwardArgs args;
  set_common(args, known);
  args.lse = tensor(known.lse, "lse");
  args.d_out = tensor(known.d_out, "d_out");
  set_optional(args.d_lse, known.d_lse, "d_lse");
  args.d_query = tensor(known.d_query, "d_query");
  args.d_key = tensor(known.d_key, "d_key");
  args.d_value = tensor(known.d_value, "d_value");
  set_optional(args.d_sinks, known.d_sinks, "d_sinks");
  set_optional(args.d_bias, known.d_bias, "d_bias");
  return args;
}

flash3::MergeArgs arguments(const flash3_merge_args* given) {
  const flash3_merge_args known = read_struct(given, "flash3_merge_args", sizeof(flash3_merge_args));
  flash3::MergeArgs args;
  args.parts_out = tensor(known.parts_out, "parts_out");
  args.parts_lse = tensor(known.parts_lse, "parts_lse");
  args.out = tensor(known.out, "out");
  set_optional(args.lse, known.lse, "lse");
  return args;
}

flash3::MergeBackwardArgs arguments(const flash3_merge_backward_args* given) {
  const flash3_merge_backward_args known =
      read_struct(given, "flash3_merge_backward_args", sizeof(flash3_merge_backward_args));
  flash3::MergeBackwardArgs args;
  args.parts_out = tensor(known.parts_out, "parts_out");
  args.parts_lse = tensor(known.parts_lse, "parts_lse");
  args.d_out = tensor(known.d_out, "d_out");
  set_optional(args.d_lse, known.d_lse, "d_lse");
  args.d_parts_out = tensor(known.d_parts_out, "d_parts_out");
  args.d_parts_lse = tensor(known.d_parts_lse, "d_parts_lse");
  return args;
}

// Gives the caller a new Handle (a plan, a report) with its text; null if that fails.
template <class Handle, class Make>
flash3_status new_handle(Handle** handle, const char* name, Make make) noexcept {
  if (handle != nullptr) *handle = nullptr;
  return guarded([&] {
    if (handle == nullptr) throw InvalidArgument(name, "is null, accepted is where to put the new one");
    auto made = make();
    std::string text = made.to_string();
    *handle = new Handle{std::move(made), std::move(text)};
  });
}

}  // namespace

extern "C" {

flash3_status flash3_forward(const flash3_forward_args* args, const flash3_execution* how) {
  return guarded([&] { flash3::forward(arguments(args), execution(how)); });
}

flash3_status flash3_backward(const flash3_backward_args* args, const flash3_execution* how) {
  return guarded([&] { flash3::backward(arguments(args), execution(how)); });
}

flash3_status flash3_merge(const flash3_merge_args* args, const flash3_execution* how) {
  return guarded([&] { flash3::merge(arguments(args), execution(how)); });
}

flash3_status flash3_merge_backward(const flash3_merge_backward_args* args, const flash3_execution* how) {
  return guarded([&] { flash3::merge_backward(arguments(args), execution(how)); });
}

flash3_status flash3_plan_forward(const flash3_forward_args* args, const flash3_execution* how, flash3_plan** plan) {
  return new_handle(plan, "plan", [&] { return flash3::plan_forward(arguments(args), execution(how)); });
}

flash3_status flash3_plan_backward(const flash3_backward_args* args, const flash3_execution* how, flash3_plan** plan) {
  return new_handle(plan, "plan", [&] { return flash3::plan_backward(arguments(args), execution(how)); });
}

const char* flash3_plan_text(const flash3_plan* plan) { return plan->text.c_str(); }
flash3_engine flash3_plan_engine(const flash3_plan* plan) { return static_cast<flash3_engine>(plan->plan.engine); }
int32_t flash3_plan_num_threads(const flash3_plan* plan) { return plan->plan.num_threads; }
double flash3_plan_flops(const flash3_plan* plan) { return plan->plan.flops; }
void flash3_plan_free(flash3_plan* plan) { delete plan; }

flash3_status flash3_check_hardware(flash3_hardware** report) {
  return new_handle(report, "report", [] { return flash3::check_hardware(); });
}

const char* flash3_hardware_text(const flash3_hardware* report) { return report->text.c_str(); }
flash3_engine flash3_hardware_engine(const flash3_hardware* report) {
  return static_cast<flash3_engine>(report->report.plan.engine);
}
int32_t flash3_hardware_num_gpus(const flash3_hardware* report) {
  return static_cast<int32_t>(report->report.cuda.gpus.size());
}
int32_t flash3_hardware_num_hopper_gpus(const flash3_hardware* report) {
  const auto& gpus = report->report.cuda.gpus;
  return static_cast<int32_t>(std::count_if(gpus.begin(), gpus.end(), [](const auto& gpu) { return gpu.hopper; }));
}
void flash3_hardware_free(flash3_hardware* report) { delete report; }

const char* flash3_last_error(void) {
  return last_error.text_is_lost ? "out of memory, even for the text of the error" : last_error.text.c_str();
}
const char* flash3_last_error_argument(void) { return last_error.text_is_lost ? "" : last_error.argument.c_str(); }

const char* flash3_status_name(flash3_status status) {
  switch (status) {
    case FLASH3_OK:
      return "ok";
    case FLASH3_INVALID_ARGUMENT:
      return "invalid argument";
    case FLASH3_UNSUPPORTED:
      return "unsupported";
    case FLASH3_OUT_OF_MEMORY:
      return "out of memory";
    case FLASH3_DEVICE_ERROR:
      return "device error";
    case FLASH3_INTERNAL_ERROR:
      return "internal error";
  }
  return "unknown status";
}

#define FLASH3_TEXT_OF(x) #x
#define FLASH3_TEXT(x) FLASH3_TEXT_OF(x)
const char* flash3_version(void) {
  return FLASH3_TEXT(FLASH3_VERSION_MAJOR) "." FLASH3_TEXT(FLASH3_VERSION_MINOR) "." FLASH3_TEXT(FLASH3_VERSION_PATCH);
}

}  // extern "C"
