#include "kernels/cuda/cuda_device.h"

#include "kernels/cuda/cuda_error.h"

namespace farspan::cuda {

CudaStream::CudaStream() {
  FARSPAN_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaStream::~CudaStream() { cudaStreamDestroy(stream_); }

void CudaStream::synchronize() { FARSPAN_CUDA(cudaStreamSynchronize(stream_)); }

cudaStream_t native(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.native_handle());
}

CudaDevice::CudaDevice(int index) : index_(index) { FARSPAN_CUDA(cudaSetDevice(index)); }

Buffer CudaDevice::allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = nullptr;
  FARSPAN_CUDA(cudaMalloc(&data, bytes));
  return Buffer(static_cast<std::byte*>(data), bytes, id(),
                [](std::byte* p, std::size_t) { cudaFree(p); });
}

Buffer CudaDevice::allocate_host(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = nullptr;
  FARSPAN_CUDA(cudaMallocHost(&data, bytes));
  return Buffer(static_cast<std::byte*>(data), bytes, {DeviceKind::kCpu, 0},
                [](std::byte* p, std::size_t) { cudaFreeHost(p); });
}

void CudaDevice::copy(std::byte* dst, const std::byte* src, std::size_t bytes, Stream& stream) {
  if (bytes == 0) return;
  FARSPAN_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, native(stream)));
}

std::unique_ptr<Stream> CudaDevice::make_stream() { return std::make_unique<CudaStream>(); }

}  // namespace farspan::cuda
