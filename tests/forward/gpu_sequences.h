// What only a real device can show: streams, graphs, several devices, very large tensors. Each returns an empty string,
// or what is wrong. Where a test has a number, it is that of its bug class.
#pragma once

#include <chrono>
#include <thread>

#include "forward/gpu_machine.h"

namespace flash3::testing {

inline std::string repeats_are_equal(int runs) {
  for (const std::int64_t head_dim : {64, 128, 256}) {
    const Repeated problem(448, 24, head_dim);
    const std::string why = all_equal(problem.bytes(), runs, [&](int, void* out) { problem.enqueue(out, nullptr); });
    if (!why.empty()) return fmt::format("head_dim {}: {}", head_dim, why);
  }
  return "";
}

// Captured once, replayed many times, with eager launches on another stream meanwhile.
inline std::string graphs_replay() {
  const Repeated problem(1000, 20, 128);
  const Stream captured, eager;
  const DeviceMemory other(problem.bytes());
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
    problem.enqueue(other.as(), eager);
  });
  require(cudaGraphExecDestroy(graph));
  return why;
}

inline std::string streams_do_not_disturb_each_other() {
  const Repeated problem(1000, 20, 128);
  const std::array<Stream, 4> streams;
  const std::array<DeviceMemory, 3> others{DeviceMemory(problem.bytes()), DeviceMemory(problem.bytes()),
                                           DeviceMemory(problem.bytes())};
  return all_equal(problem.bytes(), 60, [&](int run, void* out) {
    for (std::size_t i = 0; run > 0 && i < others.size(); ++i) problem.enqueue(others[i].as(), streams[i + 1]);
    problem.enqueue(out, streams[0]);
  });
}

// 1: what a launch leaves behind (the tile counter, outputs) must not matter to the next, whatever stands in its
// memory.
inline std::string outputs_start_poisoned() {
  const Repeated problem(700, 12, 128);
  return all_equal(problem.bytes(), 20, [&](int run, void* out) {
    require(cudaMemset(out, run % 2 == 0 ? 0xff : 0x00, problem.bytes()));
    require(cudaDeviceSynchronize());
    problem.enqueue(out, nullptr);
  });
}

// 5: the inputs arrive late on the caller's stream; on any other one the kernel would find NaN.
inline std::string waits_for_the_callers_stream() {
  const Repeated problem(1000, 8, 128);
  const Stream stream;
  std::array<void*, 3> pinned{};
  for (unsigned i = 0; i < 3; ++i) {
    require(cudaMallocHost(&pinned[i], problem.bytes()));
    std::memcpy(pinned[i], problem.host(i).data(), problem.bytes());
  }
  const std::string why = all_equal(problem.bytes(), 5, [&](int run, void* out) {
    if (run == 0) return problem.enqueue(out, nullptr);
    for (std::size_t i = 0; i < 3; ++i) require(cudaMemset(problem.input(i), 0xff, problem.bytes()));
    require(cudaDeviceSynchronize());
    const auto late = [](void*) { std::this_thread::sleep_for(std::chrono::milliseconds(100)); };
    require(cudaLaunchHostFunc(stream, late, nullptr));
    for (std::size_t i = 0; i < 3; ++i) {
      require(cudaMemcpyAsync(problem.input(i), pinned[i], problem.bytes(), cudaMemcpyHostToDevice, stream));
    }
    const auto before = std::chrono::steady_clock::now();
    problem.enqueue(out, stream);
    if (std::chrono::steady_clock::now() - before > std::chrono::milliseconds(80)) throw DeviceError("the call waited");
  });
  for (void* memory : pinned) cudaFreeHost(memory);
  return why;
}

// 20: each call's output is the next one's query, once with a synchronisation in between and once without.
inline std::string dependent_calls_back_to_back() {
  const Repeated problem(900, 8, 128);
  const Stream stream;
  const std::array<DeviceMemory, 2> steps{DeviceMemory(problem.bytes()), DeviceMemory(problem.bytes())};
  return all_equal(problem.bytes(), 10, [&](int run, void* out) {
    const void* query = problem.input(0);
    for (int step = 0; step < 12; ++step) {
      void* target = step == 11 ? out : steps[static_cast<std::size_t>(step % 2)].as();
      ForwardArgs args = problem.arguments(target);
      args.query = dense(query, {1, 900, 8, 128});
      enqueue_forward(args, stream);
      if (run == 0) require(cudaStreamSynchronize(stream));
      query = target;
    }
  });
}

// 9, 30: captured at the longest lengths, replayed at others, smaller and larger again.
inline std::string graphs_replay_with_other_lengths() {
  constexpr std::int64_t batch = 3, rows = 600, heads = 4, d = 128;
  const std::array<std::int64_t, 4> shape{batch, rows, heads, d};
  const auto bytes = static_cast<std::size_t>(batch * rows * heads * d * 2);
  const DeviceMemory query(bytes), key(bytes), value(bytes), out(bytes), lengths(2 * batch * sizeof(int));
  unsigned seed = 0;
  for (const DeviceMemory* memory : {&query, &key, &value}) {
    require(cudaMemcpy(memory->as(), random_bfloat16(bytes / 2, ++seed).data(), bytes, cudaMemcpyHostToDevice));
  }
  ForwardArgs args;
  args.query = dense(query.as(), shape);
  args.key = dense(key.as(), shape);
  args.value = dense(value.as(), shape);
  args.out = dense(out.as(), shape);
  args.seqused_q = ConstTensorView(lengths.as<int>(), DType::int32, {batch}, {DeviceType::cuda, 0});
  args.seqused_k = ConstTensorView(lengths.as<int>() + batch, DType::int32, {batch}, {DeviceType::cuda, 0});
  args.options.causal = true;
  const Stream stream;
  const auto set_lengths = [&](const std::array<int, 2 * batch>& values) {
    require(cudaMemcpy(lengths.as(), values.data(), sizeof values, cudaMemcpyHostToDevice));
    require(cudaMemset(out.as(), 0xff, bytes));
    require(cudaDeviceSynchronize());
  };
  set_lengths({rows, rows, rows, rows, rows, rows});
  cudaGraph_t definition = nullptr;
  cudaGraphExec_t graph = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  enqueue_forward(args, stream);
  require(cudaStreamEndCapture(stream, &definition));
  require(cudaGraphInstantiate(&graph, definition, 0));
  require(cudaGraphDestroy(definition));
  std::string why;
  const std::array<std::array<int, 2 * batch>, 5> all{{{rows, rows, rows, rows, rows, rows},
                                                       {1, 0, 129, 600, 5, 128},
                                                       {0, 0, 0, 0, 0, 0},
                                                       {300, 600, 17, 1, 599, 0},
                                                       {rows, rows, rows, rows, rows, rows}}};
  for (std::size_t i = 0; i < all.size() && why.empty(); ++i) {
    set_lengths(all[i]);
    require(cudaGraphLaunch(graph, stream));
    require(cudaStreamSynchronize(stream));
    const std::vector<char> replayed = downloaded(out.as(), bytes);
    set_lengths(all[i]);
    enqueue_forward(args, stream);
    require(cudaStreamSynchronize(stream));
    if (replayed != downloaded(out.as(), bytes)) why = fmt::format("replay {} differs from an eager call", i);
  }
  require(cudaGraphExecDestroy(graph));
  return why;
}

// 29: nothing to do is no error.
inline std::string nothing_at_all() {
  const DeviceMemory memory(16);
  for (const std::array<std::int64_t, 4> shape :
       {std::array<std::int64_t, 4>{0, 5, 2, 64}, std::array<std::int64_t, 4>{2, 0, 2, 64}}) {
    ForwardArgs args;
    args.query = args.key = args.value = dense(memory.as(), shape);
    args.out = dense(memory.as(), shape);
    enqueue_forward(args, nullptr);
    require(cudaDeviceSynchronize());
  }
  return "";
}

// Fills `bytes` with copies of the first `pattern` of them.
inline void replicate(char* data, std::size_t pattern, std::size_t bytes) {
  for (std::size_t done = pattern; done < bytes;) {
    const std::size_t more = std::min(done, bytes - done);
    require(cudaMemcpy(data + done, data, more, cudaMemcpyDeviceToDevice));
    done += more;
  }
}

// Whether every `pattern` bytes are those of `first`; in pieces, as the host may be small.
inline bool all_pieces_equal(const char* data, const std::vector<char>& first, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += first.size()) {
    if (downloaded(data + at, first.size()) != first) return false;
  }
  return true;
}

// 8: keys and values of more than 2^31 elements, of which only the last are seen; all else is NaN.
inline std::string keys_beyond_31_bits() {
  constexpr std::int64_t d = 128, tail = 1024, rows_q = 300, rows = (std::int64_t{1} << 24) + 4 * tail;
  const DeviceMemory query(rows_q * d * 2), key(rows * d * 2), value(rows * d * 2), out(rows_q * d * 2);
  require(cudaMemcpy(query.as(), random_bfloat16(rows_q * d, 1).data(), rows_q * d * 2, cudaMemcpyHostToDevice));
  unsigned seed = 1;
  for (const DeviceMemory* memory : {&key, &value}) {
    require(cudaMemset(memory->as(), 0xff, rows * d * 2));
    require(cudaMemcpy(memory->as<char>() + (rows - tail) * d * 2, random_bfloat16(tail * d, ++seed).data(),
                       tail * d * 2, cudaMemcpyHostToDevice));
  }
  return all_equal(rows_q * d * 2, 2, [&](int run, void* target) {
    const std::int64_t first = run == 0 ? rows - tail : 0;  // run 0 sees a small tensor
    ForwardArgs args;
    args.query = dense(query.as(), {1, rows_q, 1, d});
    args.key = dense(key.as<char>() + first * d * 2, {1, rows - first, 1, d});
    args.value = dense(value.as<char>() + first * d * 2, {1, rows - first, 1, d});
    args.out = dense(target, {1, rows_q, 1, d});
    args.options.window_left = 500;
    args.options.window_right = 0;
    enqueue_forward(args, nullptr);
  });
}

// 8: queries and outputs of more than 2^31 elements. Rows repeat, and so must their results.
inline std::string queries_beyond_31_bits() {
  constexpr std::int64_t d = 128, period = 4096, rows = (std::int64_t{1} << 24) + period, keys = 200;
  constexpr std::size_t bytes = rows * d * 2, piece = period * d * 2;
  const DeviceMemory query(bytes), key(keys * d * 2), value(keys * d * 2), out(bytes);
  require(cudaMemcpy(query.as(), random_bfloat16(period * d, 1).data(), piece, cudaMemcpyHostToDevice));
  replicate(query.as<char>(), piece, bytes);
  require(cudaMemcpy(key.as(), random_bfloat16(keys * d, 2).data(), keys * d * 2, cudaMemcpyHostToDevice));
  require(cudaMemcpy(value.as(), random_bfloat16(keys * d, 3).data(), keys * d * 2, cudaMemcpyHostToDevice));
  const auto run = [&](std::int64_t count) {
    require(cudaMemset(out.as(), 0xff, bytes));
    ForwardArgs args;
    args.query = dense(query.as(), {1, count, 1, d});
    args.key = dense(key.as(), {1, keys, 1, d});
    args.value = dense(value.as(), {1, keys, 1, d});
    args.out = dense(out.as(), {1, count, 1, d});
    enqueue_forward(args, nullptr);
    require(cudaDeviceSynchronize());
  };
  run(period);
  const std::vector<char> first = downloaded(out.as(), piece);
  run(rows);
  return all_pieces_equal(out.as<char>(), first, bytes) ? "" : "rows with the same query differ";
}

// 8: batch x heads over 65,535, which a grid's second dimension could not count.
inline std::string many_heads() {
  constexpr std::int64_t batch = 4096, heads = 17, rows = 70, d = 64;
  constexpr std::size_t piece = rows * heads * d * 2, bytes = batch * piece;
  const std::array<DeviceMemory, 3> inputs{DeviceMemory(bytes), DeviceMemory(bytes), DeviceMemory(bytes)};
  const DeviceMemory out(bytes);
  for (unsigned i = 0; i < 3; ++i) {
    require(cudaMemcpy(inputs[i].as(), random_bfloat16(piece / 2, i + 1).data(), piece, cudaMemcpyHostToDevice));
    replicate(inputs[i].as<char>(), piece, bytes);
  }
  const auto run = [&](std::int64_t count) {
    require(cudaMemset(out.as(), 0xff, bytes));
    ForwardArgs args;
    args.query = dense(inputs[0].as(), {count, rows, heads, d});
    args.key = dense(inputs[1].as(), {count, rows, heads, d});
    args.value = dense(inputs[2].as(), {count, rows, heads, d});
    args.out = dense(out.as(), {count, rows, heads, d});
    args.options.causal = true;
    enqueue_forward(args, nullptr);
    require(cudaDeviceSynchronize());
  };
  run(1);
  const std::vector<char> first = downloaded(out.as(), piece);
  run(batch);
  return all_pieces_equal(out.as<char>(), first, bytes) ? "" : "a batch differs from the first";
}

// 6: tensors of device 1 while device 0 is current, which it must still be afterwards; the same bits as on device 0.
inline std::string another_device_than_the_current() {
  const Repeated here(700, 12, 128);
  require(cudaSetDevice(1));
  const Repeated there(700, 12, 128);
  const DeviceMemory out(there.bytes());
  const Stream stream;
  require(cudaSetDevice(0));
  return all_equal(here.bytes(), 10, [&](int run, void* target) {
    if (run == 0) return here.enqueue(target, nullptr);
    there.enqueue(out.as(), run % 2 == 0 ? nullptr : static_cast<cudaStream_t>(stream));
    int current = -1;
    require(cudaGetDevice(&current));
    if (current != 0) throw DeviceError(fmt::format("device {} is current after the call", current));
    require(cudaSetDevice(1));
    require(cudaDeviceSynchronize());
    require(cudaMemcpy(target, out.as(), here.bytes(), cudaMemcpyDefault));
    require(cudaSetDevice(0));
  });
}

// 6: several devices from several threads, each thread switching between devices.
inline std::string devices_from_several_threads(int devices) {
  constexpr int threads_a_device = 2, calls = 50;
  std::vector<std::vector<char>> results(static_cast<std::size_t>(devices * threads_a_device));
  std::vector<std::string> wrong(results.size());
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < results.size(); ++t) {
    threads.emplace_back([&, t] {
      const int device = static_cast<int>(t) % devices;
      require(cudaSetDevice(device));
      const Repeated problem(700, 12, 128);
      const DeviceMemory out(problem.bytes());
      const Stream stream;
      require(cudaMemset(out.as(), 0xff, problem.bytes()));
      require(cudaDeviceSynchronize());
      for (int call = 0; call < calls; ++call) {
        require(cudaSetDevice((device + call) % devices));
        try {
          problem.enqueue(out.as(), stream);
        } catch (const Error& error) {
          wrong[t] = error.what();
          break;
        }
      }
      require(cudaSetDevice(device));
      require(cudaStreamSynchronize(stream));
      results[t] = downloaded(out.as(), problem.bytes());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t t = 0; t < results.size(); ++t) {
    if (!wrong[t].empty()) return wrong[t];
    if (results[t] != results[0]) return fmt::format("thread {} has another result than thread 0", t);
  }
  return "";
}

}  // namespace flash3::testing
