#include "kernels/cuda/cuda_device.h"

#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {
namespace {

// For destructors: an error here has been or will be reported by the call that caused it, and must
// not be found by the next launch.
void forget(cudaError_t status) noexcept {
  if (status != cudaSuccess) (void)cudaGetLastError();
}

void make_current(int device) { FARSPAN_CUDA(cudaSetDevice(device)); }

}  // namespace

DeviceCount count_devices() {
  DeviceCount found;
  const cudaError_t status = cudaGetDeviceCount(&found.devices);
  if (status == cudaSuccess && found.devices > 0) return found;
  forget(status);
  // A machine without a driver is reported as one whose driver is too old.
  int driver = 0;
  const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
  return {.devices = 0,
          .reason = has_driver
                        ? cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status)
                        : "no NVIDIA driver is loaded"};
}

CudaStream::CudaStream(int device) : device_(device) {
  make_current(device_);
  FARSPAN_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaStream::~CudaStream() {
  forget(cudaSetDevice(device_));
  forget(cudaStreamDestroy(stream_));
}

void CudaStream::synchronize() {
  make_current(device_);
  FARSPAN_CUDA(cudaStreamSynchronize(stream_));
}

// Thread-local: what the prefetch, checkpoint and progress threads ask of CUDA meanwhile is
// allowed.
void CudaStream::begin_recording() {
  FARSPAN_CHECK(!recording_, "a queue is recording already");
  make_current(device_);
  FARSPAN_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  recording_ = true;
}

std::unique_ptr<Graph> CudaStream::end_recording() {
  FARSPAN_CHECK(recording_, "no recording to end");
  make_current(device_);
  cudaGraph_t graph = nullptr;
  recording_ = false;
  FARSPAN_CUDA(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t runnable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&runnable, graph, 0);
  forget(cudaGraphDestroy(graph));
  check(status, "cudaGraphInstantiate", __FILE__, __LINE__);
  return std::make_unique<CudaGraph>(runnable);
}

void CudaStream::abandon_recording() noexcept {
  if (!recording_) return;
  recording_ = false;
  cudaGraph_t graph = nullptr;
  forget(cudaStreamEndCapture(stream_, &graph));
  if (graph != nullptr) forget(cudaGraphDestroy(graph));
}

// What it has started goes on: CUDA frees a running graph when it is done.
CudaGraph::~CudaGraph() { forget(cudaGraphExecDestroy(graph_)); }

void CudaGraph::launch(Stream& stream) { FARSPAN_CUDA(cudaGraphLaunch(graph_, native(stream))); }

CudaEvent::CudaEvent(int device) : device_(device) {
  make_current(device_);
  FARSPAN_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
}

CudaEvent::~CudaEvent() {
  forget(cudaSetDevice(device_));
  forget(cudaEventDestroy(event_));
}

void CudaEvent::record(Stream& stream) {
  make_current(device_);
  FARSPAN_CUDA(cudaEventRecord(event_, native(stream)));
}

void CudaEvent::order_before(Stream& stream) {
  make_current(device_);
  FARSPAN_CUDA(cudaStreamWaitEvent(native(stream), event_, 0));
}

bool CudaEvent::reached() {
  make_current(device_);
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) {
    forget(status);
    return false;
  }
  check(status, "cudaEventQuery", __FILE__, __LINE__);
  return true;
}

void CudaEvent::synchronize() {
  make_current(device_);
  FARSPAN_CUDA(cudaEventSynchronize(event_));
}

cudaStream_t native(const Stream& stream) {
  auto* const queue = static_cast<cudaStream_t>(stream.native_handle());
  FARSPAN_CHECK(queue != nullptr, "CUDA work on a stream that is not CUDA's");
  return queue;
}

bool is_capturing(const Stream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  FARSPAN_CUDA(cudaStreamIsCapturing(native(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

CudaDevice::CudaDevice(int index) : index_(index) { make_current(index_); }

std::string CudaDevice::name() const {
  cudaDeviceProp device{};
  FARSPAN_CUDA(cudaGetDeviceProperties(&device, index_));
  return device.name;
}

std::string CudaDevice::hardware_id() const {
  cudaDeviceProp device{};
  FARSPAN_CUDA(cudaGetDeviceProperties(&device, index_));
  std::string text = "GPU-";
  for (const char byte : device.uuid.bytes)
    text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

std::optional<DeviceMemory> CudaDevice::memory() const {
  make_current(index_);
  DeviceMemory bytes;
  FARSPAN_CUDA(cudaMemGetInfo(&bytes.free, &bytes.total));
  return bytes;
}

Buffer CudaDevice::allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  make_current(index_);
  void* data = nullptr;
  FARSPAN_CUDA(cudaMalloc(&data, bytes));
  const std::size_t now = tally_->now += bytes;
  std::size_t most = tally_->most;
  while (now > most && !tally_->most.compare_exchange_weak(most, now)) {
  }
  return Buffer(static_cast<std::byte*>(data), bytes, id(),
                [device = index_, tally = tally_](std::byte* p, std::size_t n) {
                  forget(cudaSetDevice(device));
                  forget(cudaFree(p));
                  tally->now -= n;
                });
}

TakenMemory CudaDevice::taken() const { return {.now = tally_->now, .most = tally_->most}; }

Buffer CudaDevice::allocate_host(std::size_t bytes) {
  if (bytes == 0) return {};
  make_current(index_);
  void* data = nullptr;
  FARSPAN_CUDA(cudaMallocHost(&data, bytes));
  return Buffer(static_cast<std::byte*>(data), bytes, {DeviceKind::kCpu, 0},
                [device = index_](std::byte* p, std::size_t) {
                  forget(cudaSetDevice(device));
                  forget(cudaFreeHost(p));
                });
}

void CudaDevice::copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  make_current(index_);
  FARSPAN_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, native(stream)));
}

std::unique_ptr<Stream> CudaDevice::make_stream() { return std::make_unique<CudaStream>(index_); }

std::unique_ptr<Event> CudaDevice::make_event() { return std::make_unique<CudaEvent>(index_); }

}  // namespace farspan::cuda
