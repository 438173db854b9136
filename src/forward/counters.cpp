// Handing out tile counters.
#include "forward/counters.h"

#include <string>

#include "flash3/error.h"

namespace flash3::forward_kernels {
namespace {

constexpr std::size_t chunk_size = 8192;

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw DeviceError(std::string(what) + ": " + cudaGetErrorString(error));
}

// While somebody captures a graph, allocation is forbidden unless the thread says that it knows what it does.
class RelaxedCapture {
 public:
  RelaxedCapture() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

TileCounter* new_chunk() {
  const RelaxedCapture relaxed;
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  require(cudaMalloc(&memory, chunk_size * sizeof(TileCounter)), "the tile counters' memory");
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream to clear the tile counters");
  require(cudaMemsetAsync(memory, 0, chunk_size * sizeof(TileCounter), stream), "clearing the tile counters");
  require(cudaStreamSynchronize(stream), "clearing the tile counters");
  static_cast<void>(cudaStreamDestroy(stream));
  return static_cast<TileCounter*>(memory);
}

}  // namespace

TileCounter* Counters::fresh() {
  if (left_ == 0) {
    chunk_ = new_chunk();
    left_ = chunk_size;
  }
  --left_;
  return chunk_++;
}

TileCounter* Counters::of(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  require(cudaStreamIsCapturing(stream, &status), "the stream");
  if (status != cudaStreamCaptureStatusNone) {
    const std::lock_guard lock(mutex_);
    return fresh();
  }
  unsigned long long id = 0;
  require(cudaStreamGetId(stream, &id), "the stream");
  const std::lock_guard lock(mutex_);
  TileCounter*& counter = of_stream_[id];
  if (counter == nullptr) counter = fresh();
  return counter;
}

}  // namespace flash3::forward_kernels
