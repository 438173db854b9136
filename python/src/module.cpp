// The extension module: Python arguments become flash3's, the interpreter lock is released, an engine runs, and its
// errors become Python's. Defaults, allocation and framework glue are Python's part.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "flash3/check.h"
#include "flash3/flash3.h"
#include "jax.h"
#include "tensor.h"

namespace nb = nanobind;

namespace flash3::python {
namespace {

[[noreturn]] void refuse_type(const char* name, nb::handle given, const char* accepted) {
  throw nb::type_error((std::string(name) + ": is " + name_of_type(given) + ", accepted is " + accepted).c_str());
}

[[noreturn]] void refuse_value(const char* name, const std::string& given, const char* accepted) {
  throw nb::value_error((std::string(name) + ": is " + given + ", accepted is " + accepted).c_str());
}

double number(nb::handle object, const char* name, const char* accepted) {
  if (PyFloat_Check(object.ptr())) return PyFloat_AsDouble(object.ptr());
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    refuse_type(name, object, accepted);
  }
  return value;
}

std::int64_t integer(nb::handle object, const char* name, const char* accepted) {
  nb::object index = nb::steal(PyNumber_Index(object.ptr()));
  if (!index) {
    PyErr_Clear();
    refuse_type(name, object, accepted);
  }
  const long long value = PyLong_AsLongLong(index.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    refuse_value(name, "beyond 64 bits", accepted);
  }
  return value;
}

// A truth value, and nothing that merely has one: a string or a tensor here is a misplaced argument.
bool truth(nb::handle object, const char* name) {
  if (object.ptr() == Py_True) return true;
  if (object.ptr() == Py_False) return false;
  const std::string type = name_of_type(object);
  if (type != "bool" && type != "bool_") refuse_type(name, object, "True or False");
  return PyObject_IsTrue(object.ptr()) == 1;
}

std::string_view word(nb::handle object, const char* name, const char* accepted) {
  if (!PyUnicode_Check(object.ptr())) refuse_type(name, object, accepted);
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (text == nullptr) nb::raise_python_error();
  return {text, static_cast<std::size_t>(size)};
}

// What the Python part passes on, as tuples whose order is written here and in flash3/_attention.py.
nb::handle item(const nb::tuple& tuple, Py_ssize_t index) { return PyTuple_GetItem(tuple.ptr(), index); }

void expect_items(const nb::tuple& tuple, Py_ssize_t count) {
  if (PyTuple_Size(tuple.ptr()) != count)
    throw nb::type_error("flash3's Python files and binary do not belong together");
}

constexpr Py_ssize_t input_count = 9;
constexpr Py_ssize_t option_count = 10;

// query, key, value, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, sinks, bias
struct Inputs {
  CallStream stream;
  Tensor query, key, value;
  OptionalTensor cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, sinks, bias;

  explicit Inputs(const nb::tuple& t)
      : query((expect_items(t, input_count), item(t, 0)), "query", Access::read, stream),
        key(item(t, 1), "key", Access::read, stream),
        value(item(t, 2), "value", Access::read, stream),
        cu_seqlens_q(item(t, 3), "cu_seqlens_q", Access::read, stream),
        cu_seqlens_k(item(t, 4), "cu_seqlens_k", Access::read, stream),
        seqused_q(item(t, 5), "seqused_q", Access::read, stream),
        seqused_k(item(t, 6), "seqused_k", Access::read, stream),
        sinks(item(t, 7), "sinks", Access::read, stream),
        bias(item(t, 8), "bias", Access::read, stream) {}

  template <class Args>
  void assign_to(Args& args) const {
    args.query = query.view();
    args.key = key.view();
    args.value = value.view();
    cu_seqlens_q.assign_to(args.cu_seqlens_q);
    cu_seqlens_k.assign_to(args.cu_seqlens_k);
    seqused_q.assign_to(args.seqused_q);
    seqused_k.assign_to(args.seqused_k);
    sinks.assign_to(args.sinks);
    bias.assign_to(args.bias);
  }
};

// softmax_scale, causal, alignment, window_left, window_right, softcap, max_seqlen_q, max_seqlen_k, engine, num_threads
struct Options {
  AttentionOptions attention;
  std::optional<std::int64_t> max_seqlen_q, max_seqlen_k;
  Execution execution;

  explicit Options(const nb::tuple& t) {
    expect_items(t, option_count);
    if (!item(t, 0).is_none()) attention.softmax_scale = number(item(t, 0), "softmax_scale", "a number, or None");
    attention.causal = truth(item(t, 1), "causal");
    constexpr const char* alignments = "\"bottom_right\" or \"top_left\"";
    const std::string_view corner = word(item(t, 2), "alignment", alignments);
    if (corner == "top_left") {
      attention.alignment = MaskAlignment::top_left;
    } else if (corner != "bottom_right") {
      refuse_value("alignment", "\"" + std::string(corner) + "\"", alignments);
    }
    constexpr const char* windows = "an integer of 0 or more, or None for no limit";
    if (!item(t, 3).is_none()) attention.window_left = integer(item(t, 3), "window_left", windows);
    if (!item(t, 4).is_none()) attention.window_right = integer(item(t, 4), "window_right", windows);
    attention.softcap = number(item(t, 5), "softcap", "a number");
    constexpr const char* lengths = "an integer of 0 or more, or None";
    if (!item(t, 6).is_none()) max_seqlen_q = integer(item(t, 6), "max_seqlen_q", lengths);
    if (!item(t, 7).is_none()) max_seqlen_k = integer(item(t, 7), "max_seqlen_k", lengths);
    execution.engine = engine_of(item(t, 8));
    constexpr const char* counts = "an integer: 0 (every core) or more";
    const std::int64_t threads = integer(item(t, 9), "num_threads", counts);
    constexpr std::int64_t most_threads = 1 << 20;
    if (threads < 0 || threads > most_threads) refuse_value("num_threads", std::to_string(threads), counts);
    execution.num_threads = static_cast<int>(threads);
  }

  template <class Args>
  void assign_to(Args& args) const {
    args.options = attention;
    args.max_seqlen_q = max_seqlen_q;
    args.max_seqlen_k = max_seqlen_k;
  }

 private:
  static Engine engine_of(nb::handle object) {
    constexpr const char* engines = "\"automatic\", \"cuda\", \"cpu\", \"reference\" or \"emulator\"";
    const std::string_view name = word(object, "engine", engines);
    for (Engine e : {Engine::automatic, Engine::cuda, Engine::cpu, Engine::reference, Engine::emulator}) {
      if (name == name_of(e)) return e;
    }
    refuse_value("engine", "\"" + std::string(name) + "\"", engines);
  }
};

void run_forward(const nb::tuple& inputs, nb::handle out, nb::handle lse, const nb::tuple& options) {
  Inputs tensors(inputs);
  Options chosen(options);
  const Tensor out_tensor(out, "out", Access::write, tensors.stream);
  const OptionalTensor lse_tensor(lse, "lse", Access::write, tensors.stream);
  ForwardArgs args;
  tensors.assign_to(args);
  args.out = out_tensor.view();
  lse_tensor.assign_to(args.lse);
  chosen.assign_to(args);
  chosen.execution.stream = tensors.stream.get();
  const nb::gil_scoped_release released;
  forward(args, chosen.execution);
}

// Microseconds of the C++ call alone, the mean of `count`: what the rest of a call from Python is measured against.
double time_forward(const nb::tuple& inputs, nb::handle out, const nb::tuple& options, int count) {
  Inputs tensors(inputs);
  Options chosen(options);
  const Tensor out_tensor(out, "out", Access::write, tensors.stream);
  ForwardArgs args;
  tensors.assign_to(args);
  args.out = out_tensor.view();
  chosen.assign_to(args);
  chosen.execution.stream = tensors.stream.get();
  const nb::gil_scoped_release released;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) forward(args, chosen.execution);
  const std::chrono::duration<double, std::micro> passed = std::chrono::steady_clock::now() - start;
  return passed.count() / count;
}

// saved: out, lse, d_out, d_lse. gradients: d_query, d_key, d_value, d_sinks, d_bias.
void run_backward(const nb::tuple& inputs, const nb::tuple& saved, const nb::tuple& gradients,
                  const nb::tuple& options) {
  expect_items(saved, 4);
  expect_items(gradients, 5);
  Inputs tensors(inputs);
  Options chosen(options);
  const Tensor out(item(saved, 0), "out", Access::read, tensors.stream);
  const Tensor lse(item(saved, 1), "lse", Access::read, tensors.stream);
  const Tensor d_out(item(saved, 2), "d_out", Access::read, tensors.stream);
  const OptionalTensor d_lse(item(saved, 3), "d_lse", Access::read, tensors.stream);
  const Tensor d_query(item(gradients, 0), "d_query", Access::write, tensors.stream);
  const Tensor d_key(item(gradients, 1), "d_key", Access::write, tensors.stream);
  const Tensor d_value(item(gradients, 2), "d_value", Access::write, tensors.stream);
  const OptionalTensor d_sinks(item(gradients, 3), "d_sinks", Access::write, tensors.stream);
  const OptionalTensor d_bias(item(gradients, 4), "d_bias", Access::write, tensors.stream);
  BackwardArgs args;
  tensors.assign_to(args);
  args.out = out.view();
  args.lse = lse.view();
  args.d_out = d_out.view();
  d_lse.assign_to(args.d_lse);
  args.d_query = d_query.view();
  args.d_key = d_key.view();
  args.d_value = d_value.view();
  d_sinks.assign_to(args.d_sinks);
  d_bias.assign_to(args.d_bias);
  chosen.assign_to(args);
  chosen.execution.stream = tensors.stream.get();
  const nb::gil_scoped_release released;
  backward(args, chosen.execution);
}

// Dense tensors that a plan is told of and that nobody allocates: a plan reads no data, but checks that outputs do not
// overlap, so each gets an address range of its own, far from any real one.
class Imagined {
 public:
  TensorView like(const ConstTensorView& t, DType dtype, std::initializer_list<std::int64_t> shape) {
    constexpr std::uintptr_t first = std::uintptr_t{1} << 62, apart = std::uintptr_t{1} << 58;
    return {reinterpret_cast<void*>(first + apart * count_++), dtype, shape, t.device};
  }
  TensorView like(const ConstTensorView& t) { return like(t, t, t.rank > 0 ? t.shape[last(t)] : 0); }
  TensorView like(const ConstTensorView& t, const ConstTensorView& dtype, std::int64_t last_extent) {
    TensorView view = like(t, dtype.dtype, {});
    view.rank = t.rank;
    view.shape = t.shape;
    if (t.rank > 0) view.shape[last(t)] = last_extent;
    std::int64_t stride = 1;
    for (int d = t.rank - 1; d >= 0; --d) {
      view.strides[static_cast<std::size_t>(d)] = stride;
      stride *= view.shape[static_cast<std::size_t>(d)];
    }
    return view;
  }
  TensorView out(const ConstTensorView& query, const ConstTensorView& value) {
    return like(query, query, value.rank > 0 ? value.shape[last(value)] : 0);
  }
  TensorView lse(const ConstTensorView& query) {
    const DType dtype = query.dtype == DType::float64 ? DType::float64 : DType::float32;
    const auto& s = query.shape;
    return query.rank == 4 ? like(query, dtype, {s[0], s[2], s[1]}) : like(query, dtype, {s[1], s[0]});
  }

 private:
  static std::size_t last(const ConstTensorView& t) { return static_cast<std::size_t>(t.rank - 1); }
  std::uintptr_t count_ = 0;
};

// The inputs, if not where they are then dense and on that GPU.
template <class Args>
void assign_inputs(const Inputs& tensors, std::optional<int> gpu, Imagined& imagined, Args& args) {
  tensors.assign_to(args);
  if (!gpu) return;
  const auto move = [&](ConstTensorView& view) {
    view = imagined.like(view);
    view.device = {DeviceType::cuda, *gpu};
  };
  for (ConstTensorView* view : {&args.query, &args.key, &args.value}) move(*view);
  for (auto* view :
       {&args.cu_seqlens_q, &args.cu_seqlens_k, &args.seqused_q, &args.seqused_k, &args.sinks, &args.bias}) {
    if (*view) move(**view);
  }
}

// gpu: for tensors that will be on this GPU, wherever these are.
Plan make_plan(const nb::tuple& inputs, const nb::tuple& options, bool for_backward, std::optional<int> gpu) {
  const Inputs tensors(inputs);
  const Options chosen(options);
  Imagined imagined;
  if (!for_backward) {
    ForwardArgs args;
    assign_inputs(tensors, gpu, imagined, args);
    args.out = imagined.out(args.query, args.value);
    chosen.assign_to(args);
    return plan_forward(args, chosen.execution);
  }
  BackwardArgs args;
  assign_inputs(tensors, gpu, imagined, args);
  args.out = imagined.out(args.query, args.value);
  args.d_out = imagined.out(args.query, args.value);
  args.lse = imagined.lse(args.query);
  args.d_query = imagined.like(args.query);
  args.d_key = imagined.like(args.key);
  args.d_value = imagined.like(args.value);
  if (args.sinks) args.d_sinks = imagined.like(*args.sinks);
  if (args.bias) args.d_bias = imagined.like(*args.bias);
  chosen.assign_to(args);
  return plan_backward(args, chosen.execution);
}

// For results that take after a tensor of unknown kind.
nb::tuple shape_and_dtype(nb::handle object, const char* name) {
  CallStream stream;
  const Tensor tensor(object, name, Access::read, stream);
  nb::list shape;
  for (int d = 0; d < tensor.view().rank; ++d) shape.append(tensor.view().shape[static_cast<std::size_t>(d)]);
  return nb::make_tuple(nb::tuple(shape), std::string(name_of(tensor.view().dtype)));
}

// The stream that a call on this tensor would be queued on.
std::uintptr_t current_stream(nb::handle object) {
  CallStream stream;
  const Tensor tensor(object, "tensor", Access::read, stream);
  return reinterpret_cast<std::uintptr_t>(stream.get());
}

// The hardware report as data: dictionaries with the C++ structures' names.
nb::list capabilities(const std::vector<Capability>& all) {
  nb::list list;
  for (const Capability& c : all) {
    nb::dict d;
    d["name"] = c.name;
    d["present"] = c.present;
    d["detail"] = c.detail;
    list.append(d);
  }
  return list;
}

nb::dict gpu_data(const GpuInfo& gpu) {
  nb::dict d;
  d["index"] = gpu.index;
  d["name"] = gpu.name;
  d["compute_capability"] = nb::make_tuple(gpu.compute_major, gpu.compute_minor);
  d["memory_bytes"] = gpu.memory_bytes;
  d["multiprocessors"] = gpu.multiprocessors;
  d["clock_khz"] = gpu.clock_khz;
  d["l2_bytes"] = gpu.l2_bytes;
  d["shared_memory_per_multiprocessor"] = gpu.shared_memory_per_multiprocessor;
  d["shared_memory_per_block"] = gpu.shared_memory_per_block;
  d["nvlinks"] = gpu.nvlinks;
  nb::list peers;
  for (const GpuPeer& peer : gpu.peers) {
    nb::dict p;
    p["index"] = peer.index;
    p["access"] = peer.access;
    p["nvlink"] = peer.nvlink;
    peers.append(p);
  }
  d["peers"] = peers;
  d["features"] = capabilities(gpu.features);
  d["hopper"] = gpu.hopper;
  return d;
}

nb::dict cuda_data(const HardwareReport& report) {
  const CudaInfo& cuda = report.cuda;
  nb::dict d;
  d["driver"] = cuda.driver;
  d["problem"] = cuda.problem;
  d["driver_version"] = cuda.driver_version;
  d["cuda_version"] = cuda.cuda_version;
  d["runtime_version"] = cuda.runtime_version;
  nb::list gpus;
  for (const GpuInfo& gpu : cuda.gpus) gpus.append(gpu_data(gpu));
  d["gpus"] = gpus;
  return d;
}

nb::dict cpu_data(const HardwareReport& report) {
  const CpuInfo& cpu = report.cpu;
  nb::dict d;
  d["brand"] = cpu.brand;
  d["architecture"] = cpu.architecture;
  d["isa"] = capabilities(cpu.isa);
  d["cores"] = cpu.cores;
  d["usable_cores"] = cpu.usable_cores;
  d["quota"] = cpu.quota;
  d["clock_khz"] = cpu.clock_khz;
  nb::list caches;
  for (const CacheInfo& cache : cpu.caches) {
    nb::dict c;
    c["level"] = cache.level;
    c["type"] = cache.type;
    c["bytes"] = cache.bytes;
    c["shared_by"] = cache.shared_by;
    caches.append(c);
  }
  d["caches"] = caches;
  d["memory_bytes"] = cpu.memory_bytes;
  return d;
}

}  // namespace
}  // namespace flash3::python

NB_MODULE(_flash3, m) {
  using namespace flash3;  // NOLINT(google-build-using-namespace)
  m.attr("__version__") = FLASH3_VERSION;

  // The kinds of error that Python has for these.
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const InvalidArgument& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const Unsupported& e) {
      PyErr_SetString(PyExc_NotImplementedError, e.what());
    } catch (const Error& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what());
    }
  });

  nb::class_<Plan>(m, "Plan",
                   "What would run for a problem, and why; made without running anything. print() it, or read it.")
      .def_prop_ro(
          "engine", [](const Plan& p) { return std::string(name_of(p.engine)); }, "The engine that would run.")
      .def_ro("problem", &Plan::problem, "The problem in one line.")
      .def_ro("kernel", &Plan::kernel, "What runs, in the engine's own words: instruction set, tiles.")
      .def_ro("num_threads", &Plan::num_threads, "CPU threads; 0 on a GPU.")
      .def_ro("flops", &Plan::flops, "Floating-point operations of the visible pairs' matrix products.")
      .def_ro("reasons", &Plan::reasons, "Why this engine and this configuration.")
      .def_prop_ro(
          "refused",
          [](const Plan& p) {
            nb::list list;
            for (const Refusal& r : p.refused) list.append(nb::make_tuple(std::string(name_of(r.engine)), r.reason));
            return list;
          },
          "Better engines that were passed over, as (engine, reason).")
      .def("__str__", &Plan::to_string)
      .def("__repr__",
           [](const Plan& p) { return "<flash3.Plan: " + std::string(name_of(p.engine)) + " for " + p.problem + ">"; });

  nb::class_<HardwareReport>(
      m, "HardwareReport",
      "What this machine has of what flash3 wants. print() it, or read it: include/flash3/check.h "
      "says what each field means.")
      .def_prop_ro("cuda", &python::cuda_data, "The CUDA driver and its GPUs, as dictionaries.")
      .def_prop_ro("cpu", &python::cpu_data, "The CPU, its vector extensions and caches, as a dictionary.")
      .def_ro("plan", &HardwareReport::plan, "What would run on bfloat16 tensors in CPU memory.")
      .def_ro("missing", &HardwareReport::missing, "What a better engine, or a faster one, would need.")
      .def("__str__", &HardwareReport::to_string)
      .def("__repr__", [](const HardwareReport& r) { return "<flash3.HardwareReport: " + r.cpu.brand + ">"; });

  m.def(
      "check",
      [] {
        const nb::gil_scoped_release released;
        return check_hardware();
      },
      "Ask the CUDA driver and the CPU what this machine has. What is absent is reported, not raised.");
  m.def("forward", &python::run_forward, nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
  m.def("backward", &python::run_backward);
  m.def("time_forward", &python::time_forward);
  m.def("plan", &python::make_plan, nb::arg(), nb::arg(), nb::arg(), nb::arg("gpu") = nb::none());
  // For jax.ffi.register_ffi_target.
  m.attr("jax_forward") = nb::capsule(reinterpret_cast<void*>(&python::jax_forward), "xla._CUSTOM_CALL_TARGET");
  m.attr("jax_backward") = nb::capsule(reinterpret_cast<void*>(&python::jax_backward), "xla._CUSTOM_CALL_TARGET");
  m.attr("jax_forward_gpu") = nb::capsule(reinterpret_cast<void*>(&python::jax_forward_gpu), "xla._CUSTOM_CALL_TARGET");
  m.attr("jax_backward_gpu") =
      nb::capsule(reinterpret_cast<void*>(&python::jax_backward_gpu), "xla._CUSTOM_CALL_TARGET");
  m.def("current_stream", &python::current_stream);
  m.def("shape_and_dtype", &python::shape_and_dtype, nb::arg().none(), nb::arg());
}
