#include "support/simt/runtime_api.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <set>
#include <vector>

#include "core/error.h"
#include "support/simt/memory.h"
#include "support/simt/runtime.h"

using farspan::simt::Mark;
using farspan::simt::memory;
using farspan::simt::Memory;
using farspan::simt::runtime;
using farspan::simt::Where;

struct CUevent_st {
  std::shared_ptr<Mark> mark;  // of the latest record
  std::chrono::steady_clock::time_point recorded{};
};

struct CUgraph_st {
  std::vector<farspan::simt::Work> work;
};
struct CUgraphExec_st {
  std::vector<farspan::simt::Work> work;
};

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local bool capturing = false, capture_is_valid = true;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

// For what a capture cannot hold: makes it invalid.
bool refused_by_capture() {
  if (capturing) capture_is_valid = false;
  return capturing;
}

// Whether `bytes` at the address may be copied: memory that is not ours is not known.
bool holds(const void* address, std::size_t bytes) {
  const auto behind = memory().bytes_behind(address);
  return !behind || *behind >= bytes;
}

bool is_pageable(const void* address) { return memory().where(address) == Where::kPageable; }

// The direction that the caller names, if it names one, must be that of the addresses.
bool direction_holds(const void* dst, const void* src, cudaMemcpyKind kind) {
  if (kind == cudaMemcpyDefault) return true;
  const bool to = memory().where(dst) == Where::kDevice,
             from = memory().where(src) == Where::kDevice;
  return to == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
         from == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
}

struct Rows {
  std::size_t width, height, dst_pitch, src_pitch;
  std::size_t dst_bytes() const { return height == 0 ? 0 : (height - 1) * dst_pitch + width; }
  std::size_t src_bytes() const { return height == 0 ? 0 : (height - 1) * src_pitch + width; }
};

void copy_rows(void* dst, const void* src, const Rows& rows) {
  for (std::size_t r = 0; r < rows.height; ++r)
    std::memcpy(static_cast<std::byte*>(dst) + r * rows.dst_pitch,
                static_cast<const std::byte*>(src) + r * rows.src_pitch, rows.width);
}

cudaError_t copy(void* dst, const void* src, const Rows& rows, cudaMemcpyKind kind,
                 cudaStream_t stream) {
  if (rows.width == 0 || rows.height == 0) return cudaSuccess;
  if (dst == nullptr || src == nullptr || rows.dst_pitch < rows.width ||
      rows.src_pitch < rows.width || !holds(dst, rows.dst_bytes()) ||
      !holds(src, rows.src_bytes()) || !direction_holds(dst, src, kind))
    return result(cudaErrorInvalidValue);
  if ((is_pageable(src) || is_pageable(dst)) && refused_by_capture())
    return result(cudaErrorStreamCaptureUnsupported);
  if (is_pageable(src)) {
    const auto* const begin = static_cast<const std::byte*>(src);
    const auto staged = std::make_shared<std::vector<std::byte>>(begin, begin + rows.src_bytes());
    runtime().enqueue(stream, {.run = [=] { copy_rows(dst, staged->data(), rows); }});
  } else {
    runtime().enqueue(stream, {.run = [=] { copy_rows(dst, src, rows); }});
  }
  if (is_pageable(dst)) runtime().synchronize(stream);
  return cudaSuccess;
}

cudaError_t make_event(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t release(void* data, Where where) {
  if (data == nullptr) return cudaSuccess;
  if (refused_by_capture()) return result(cudaErrorStreamCaptureUnsupported);
  runtime().synchronize_all_quietly();
  try {
    return result(memory().release(data, where) ? cudaSuccess : cudaErrorInvalidValue);
  } catch (const farspan::Error& damage) {  // most callers are destructors
    std::fprintf(stderr, "%s\n", damage.what());
    std::abort();
  }
}

cudaError_t allocate(void** data, std::size_t bytes, Where where) {
  *data = nullptr;
  if (refused_by_capture()) return result(cudaErrorStreamCaptureUnsupported);
  *data = bytes == 0 ? nullptr : memory().allocate(bytes, where);
  return result(*data == nullptr && bytes > 0 ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaDeviceProp properties() {
  cudaDeviceProp p{};
  std::snprintf(p.name, sizeof p.name, "Emulated GPU");
  std::memcpy(p.uuid.bytes, "farspan-emulated", sizeof p.uuid.bytes);
  p.totalGlobalMem = Memory::kDeviceBytes;
  p.sharedMemPerBlock = std::size_t{48} << 10;
  p.sharedMemPerBlockOptin = farspan::simt::kMostSharedBytes;
  p.sharedMemPerMultiprocessor = std::size_t{228} << 10;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiProcessor = 2048;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 2147483647;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.major = 9;
  p.minor = 0;
  p.multiProcessorCount = farspan::simt::kMultiprocessors;
  p.canMapHostMemory = p.concurrentKernels = p.unifiedAddressing = 1;
  p.asyncEngineCount = 3;
  p.l2CacheSize = 50 << 20;
  return p;
}

}  // namespace

namespace farspan::simt {

cudaError_t launch(const KernelRun& run, std::shared_ptr<const void> keep, cudaStream_t stream) {
  const dim3 &g = run.grid, &b = run.block;
  const bool fits = g.x >= 1 && g.x <= 2147483647u && g.y >= 1 && g.y <= 65535 && g.z >= 1 &&
                    g.z <= 65535 && b.x >= 1 && b.y >= 1 && b.z >= 1 && b.x <= 1024 &&
                    b.y <= 1024 && b.z <= 64 && std::uint64_t{b.x} * b.y * b.z <= 1024;
  if (!fits) return result(cudaErrorInvalidConfiguration);
  if (run.shared_bytes > kMostSharedBytes) return result(cudaErrorInvalidValue);
  runtime().enqueue(stream, {.run = [run, keep] { run_kernel(run, runtime().disorder()); }});
  return cudaSuccess;
}

}  // namespace farspan::simt

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  *p = properties();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  const cudaDeviceProp p = properties();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = p.maxThreadsPerMultiProcessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  if (device != 0) return result(cudaErrorInvalidDevice);
  std::snprintf(text, static_cast<std::size_t>(length), "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  runtime().synchronize_all();
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    default:
      return "another CUDA error";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return cudaGetErrorName(error);
  }
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  return allocate(data, bytes, Where::kDevice);
}
cudaError_t cudaFree(void* data) { return release(data, Where::kDevice); }
cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  return allocate(data, bytes, Where::kPinned);
}
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned) {
  return allocate(data, bytes, Where::kPinned);
}
cudaError_t cudaFreeHost(void* data) { return release(data, Where::kPinned); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = Memory::kDeviceBytes;
  *free = Memory::kDeviceBytes - memory().device_bytes_used();
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  auto* const p = const_cast<void*>(address);
  const Where where = memory().where(address);
  *attributes = {.type = where == Where::kDevice   ? cudaMemoryTypeDevice
                         : where == Where::kPinned ? cudaMemoryTypeHost
                                                   : cudaMemoryTypeUnregistered,
                 .device = where == Where::kPageable ? -2 : 0,
                 .devicePointer = where == Where::kPageable ? nullptr : p,
                 .hostPointer = where == Where::kDevice ? nullptr : p};
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy(dst, src, {bytes, 1, bytes, bytes}, kind, stream);
}
cudaError_t cudaMemcpy(void* dst, const void* src, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t status = cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
  runtime().synchronize(static_cast<cudaStream_t>(nullptr));
  return status;
}
cudaError_t cudaMemcpy2DAsync(void* dst, std::size_t dst_pitch, const void* src,
                              std::size_t src_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(dst, src, {width, height, dst_pitch, src_pitch}, kind, stream);
}
cudaError_t cudaMemsetAsync(void* dst, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (is_pageable(dst) || !holds(dst, bytes)) return result(cudaErrorInvalidValue);
  runtime().enqueue(stream, {.run = [=] { std::memset(dst, value, bytes); }});
  return cudaSuccess;
}
cudaError_t cudaMemset(void* dst, int value, std::size_t bytes) {
  return cudaMemsetAsync(dst, value, bytes, nullptr);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = runtime().make_stream();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr) return result(cudaErrorInvalidResourceHandle);
  runtime().destroy_stream(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (runtime().is_capturing(stream) && refused_by_capture())
    return result(cudaErrorStreamCaptureUnsupported);
  runtime().synchronize(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return runtime().idle(stream) ? cudaSuccess : result(cudaErrorNotReady);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (runtime().is_capturing(stream) && refused_by_capture())
    return result(cudaErrorStreamCaptureUnsupported);
  if (event->mark) runtime().enqueue(stream, {.after = event->mark});
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = !runtime().is_capturing(stream) ? cudaStreamCaptureStatusNone
            : capture_is_valid              ? cudaStreamCaptureStatusActive
                                            : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || capturing) return result(cudaErrorStreamCaptureUnsupported);
  runtime().begin_capture(stream);
  capturing = capture_is_valid = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!runtime().is_capturing(stream)) return result(cudaErrorIllegalState);
  auto work = runtime().end_capture(stream);
  capturing = false;
  if (!capture_is_valid) return result(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{std::move(work)};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* runnable, cudaGraph_t graph, unsigned long long) {
  *runnable = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t runnable, cudaStream_t stream) {
  for (const farspan::simt::Work& work : runnable->work) runtime().enqueue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t runnable) {
  delete runnable;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  runtime().enqueue(stream, {.run = [=] { function(argument); }, .on_host = true});
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return make_event(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return make_event(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (runtime().is_capturing(stream) && refused_by_capture())
    return result(cudaErrorStreamCaptureUnsupported);
  event->mark = runtime().mark(stream);
  event->recorded = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return !event->mark || runtime().reached(event->mark) ? cudaSuccess : result(cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->mark) runtime().synchronize(event->mark);
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->mark || !end->mark) return result(cudaErrorInvalidResourceHandle);
  if (!begin->mark->reached || !end->mark->reached) return result(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->recorded - begin->recorded).count();
  return cudaSuccess;
}
