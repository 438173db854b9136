// The forward kernels on a GPU.
//
//   flash3_gpu_tests [--filter text] [--seconds n] [--repeats n] [--json file]
//
// Each case runs under a watchdog: a kernel that hangs ends the program after n seconds.
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <functional>

#include "forward/differential.h"

namespace {

void require(cudaError_t error) {
  if (error != cudaSuccess) {
    fmt::print(stderr, "CUDA: {}\n", cudaGetErrorString(error));
    std::fflush(nullptr);
    std::_Exit(3);
  }
}

class Gpu final : public flash3::testing::Machine {
 public:
  flash3::DeviceType device() const override { return flash3::DeviceType::cuda; }
  void* allocate(std::size_t bytes, bool) override {
    void* memory = nullptr;
    require(cudaMalloc(&memory, bytes + 16));
    return memory;
  }
  void release(void* memory) override { cudaFree(memory); }
  void upload(void* to, const void* from, std::size_t bytes) override {
    require(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
  }
  void download(void* to, const void* from, std::size_t bytes) override {
    require(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  }
  void forward(const flash3::ForwardArgs& args) override {
    flash3::Execution execution;
    execution.engine = flash3::Engine::cuda;
    flash3::forward(args, execution);
    require(cudaDeviceSynchronize());
  }
};

// One causal problem of some heads whose buffers stay, for launches that repeat.
class Repeated {
 public:
  Repeated(std::int64_t seqlen, std::int64_t heads, std::int64_t head_dim) : shape_{1, seqlen, heads, head_dim} {
    elements_ = static_cast<std::size_t>(seqlen * heads * head_dim);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> values(elements_);
    for (void*& memory : inputs_) {
      for (auto& v : values) v = flash3::testing::encode(flash3::DType::bfloat16, normal(random));
      memory = gpu_.allocate(elements_ * 2, false);
      gpu_.upload(memory, values.data(), elements_ * 2);
    }
  }
  ~Repeated() {
    for (void* memory : inputs_) gpu_.release(memory);
  }
  Repeated(const Repeated&) = delete;
  Repeated& operator=(const Repeated&) = delete;

  std::size_t bytes() const { return elements_ * 2; }

  void enqueue(void* out, cudaStream_t stream) const {
    const flash3::Device device{flash3::DeviceType::cuda, 0};
    const auto view = [&](void* data) {
      return flash3::TensorView(data, flash3::DType::bfloat16, {shape_[0], shape_[1], shape_[2], shape_[3]}, device);
    };
    flash3::ForwardArgs args;
    args.query = view(inputs_[0]);
    args.key = view(inputs_[1]);
    args.value = view(inputs_[2]);
    args.out = view(out);
    args.options.causal = true;
    flash3::Execution execution;
    execution.engine = flash3::Engine::cuda;
    execution.stream = stream;
    flash3::forward(args, execution);
  }

 private:
  std::array<std::int64_t, 4> shape_;
  std::size_t elements_;
  Gpu gpu_;
  std::array<void*, 3> inputs_{};
};

// Runs `launch(out)` many times; every result must have the bits of the first. Empty, or what differed.
std::string all_equal(std::size_t bytes, int runs, const std::function<void(int, void*)>& launch) {
  void *out = nullptr, *landed = nullptr;
  require(cudaMalloc(&out, bytes));
  require(cudaMallocHost(&landed, bytes));
  std::vector<char> first;
  std::string difference;
  for (int run = 0; run < runs && difference.empty(); ++run) {
    require(cudaMemset(out, 0xff, bytes));
    require(cudaDeviceSynchronize());
    launch(run, out);
    require(cudaDeviceSynchronize());
    require(cudaMemcpy(landed, out, bytes, cudaMemcpyDeviceToHost));
    const char* got = static_cast<const char*>(landed);
    if (run == 0) {
      first.assign(got, got + bytes);
    } else if (std::memcmp(first.data(), got, bytes) != 0) {
      difference = fmt::format("run {} differs from the first", run);
    }
  }
  cudaFreeHost(landed);
  cudaFree(out);
  return difference;
}

std::string repeats_are_equal(int runs) {
  for (const std::int64_t head_dim : {64, 128, 256}) {
    const Repeated problem(448, 24, head_dim);
    const std::string why = all_equal(problem.bytes(), runs, [&](int, void* out) { problem.enqueue(out, nullptr); });
    if (!why.empty()) return fmt::format("head_dim {}: {}", head_dim, why);
  }
  return "";
}

// Captured once, replayed many times, with eager launches on another stream meanwhile.
std::string graphs_replay() {
  const Repeated problem(1000, 20, 128);
  cudaStream_t captured = nullptr, eager = nullptr;
  require(cudaStreamCreateWithFlags(&captured, cudaStreamNonBlocking));
  require(cudaStreamCreateWithFlags(&eager, cudaStreamNonBlocking));
  void* other = nullptr;
  require(cudaMalloc(&other, problem.bytes()));
  cudaGraphExec_t graph = nullptr;
  const std::string why = all_equal(problem.bytes(), 60, [&](int run, void* out) {
    if (run == 0) return problem.enqueue(out, eager);
    if (run == 1) {
      cudaGraph_t definition = nullptr;
      require(cudaStreamBeginCapture(captured, cudaStreamCaptureModeGlobal));
      problem.enqueue(out, captured);
      require(cudaStreamEndCapture(captured, &definition));
      require(cudaGraphInstantiate(&graph, definition, 0));
      require(cudaGraphDestroy(definition));
    }
    require(cudaGraphLaunch(graph, captured));
    problem.enqueue(other, eager);
  });
  require(cudaGraphExecDestroy(graph));
  require(cudaFree(other));
  require(cudaStreamDestroy(captured));
  require(cudaStreamDestroy(eager));
  return why;
}

std::string streams_do_not_disturb_each_other() {
  const Repeated problem(1000, 20, 128);
  std::array<cudaStream_t, 4> streams{};
  std::array<void*, 3> others{};
  for (cudaStream_t& stream : streams) require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (void*& other : others) require(cudaMalloc(&other, problem.bytes()));
  const std::string why = all_equal(problem.bytes(), 60, [&](int run, void* out) {
    for (std::size_t i = 0; run > 0 && i < others.size(); ++i) problem.enqueue(others[i], streams[i + 1]);
    problem.enqueue(out, streams[0]);
  });
  for (void* other : others) require(cudaFree(other));
  for (cudaStream_t stream : streams) require(cudaStreamDestroy(stream));
  return why;
}

}  // namespace

int main(int argc, char** argv) {
  std::string filter, json;
  unsigned seconds = 30;
  int repeats = 200;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--filter") filter = argv[i + 1];
    if (option == "--seconds") seconds = static_cast<unsigned>(std::stoul(argv[i + 1]));
    if (option == "--json") json = argv[i + 1];
    if (option == "--repeats") repeats = std::stoi(argv[i + 1]);
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fmt::print("no CUDA device\n");
    return 77;
  }
  Gpu gpu;
  int passed = 0, failed = 0;
  std::string results;
  const auto note = [&](const std::string& name, const flash3::testing::Outcome& outcome) {
    (outcome.ok ? passed : failed)++;
    if (!outcome.ok) fmt::print("\rFAIL {}: {}\n", name, outcome.why);
    std::fflush(stdout);
    results += fmt::format(
        "{}{{\"test\": \"{}\", \"ok\": {}, \"error\": {:.4g}, \"allowed\": {:.4g}, \"lse_error\": {:.3g}}}",
        results.empty() ? "" : ",\n  ", name, outcome.ok, outcome.error, outcome.allowed, outcome.lse_error);
  };
  for (const flash3::testing::Case& c : flash3::testing::all_cases()) {
    if (c.name.find(filter) == std::string::npos) continue;
    // If the kernel hangs, SIGALRM ends the program, and this line is the last.
    fmt::print(stderr, "\r{:<70}", c.name);
    std::fflush(stderr);
    alarm(seconds);
    flash3::testing::Outcome outcome;
    try {
      outcome = run(c, gpu);
    } catch (const flash3::Error& e) {
      outcome.ok = false;
      outcome.why = e.what();
    }
    alarm(0);
    note(c.name, outcome);
  }
  const struct {
    std::string name;
    std::function<std::string()> run;
  } sequences[] = {{fmt::format("{} repeats, the same bits", repeats), [&] { return repeats_are_equal(repeats); }},
                   {"captured in a graph and replayed", graphs_replay},
                   {"several streams at once", streams_do_not_disturb_each_other}};
  for (const auto& sequence : sequences) {
    if (sequence.name.find(filter) == std::string::npos) continue;
    alarm(10 * seconds);
    flash3::testing::Outcome outcome;
    try {
      outcome.why = sequence.run();
    } catch (const flash3::Error& e) {
      outcome.why = e.what();
    }
    outcome.ok = outcome.why.empty();
    alarm(0);
    note(sequence.name, outcome);
  }
  if (!json.empty()) {
    if (std::FILE* file = std::fopen(json.c_str(), "w")) {
      fmt::print(file, "[\n  {}\n]\n", results);
      std::fclose(file);
    }
  }
  fmt::print("\r{} passed, {} failed{:60}\n", passed, failed, "");
  return failed == 0 ? 0 : 1;
}
