// The functions of cuDNN that its frontend calls, each handed on to the library once it is loaded.
//
// Linking cuDNN would keep the program from starting where it is not installed. The frontend can
// load it by itself (NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING), but then it loads a second CUDA
// runtime too, of whichever version it finds first; here it keeps to the one that is linked in.
#include "kernels/cuda/attention/cudnn_library.h"

#include <cudnn.h>
#include <dlfcn.h>
#include <nvrtc.h>

namespace farspan::cuda {
namespace {

constexpr const char* kLibrary = "libcudnn.so.9";

struct Loaded {
  void* handle = nullptr;
  CudnnLibrary library;
};

const Loaded& loaded() {
  static const Loaded once = [] {
    Loaded l;
    l.handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (l.handle == nullptr) {
      const char* reason = dlerror();
      l.library.absent = reason == nullptr ? kLibrary : reason;
      return l;
    }
    using Version = std::size_t (*)();
    const auto version = reinterpret_cast<Version>(dlsym(l.handle, "cudnnGetVersion"));
    if (version == nullptr)
      l.library.absent = std::string(kLibrary) + " is no cuDNN";
    else
      l.library.version = static_cast<int>(version());
    return l;
  }();
  return once;
}

// The library's function of that name, or `otherwise()` where there is none.
template <typename Result, typename... Params>
Result hand_on(const char* name, Result otherwise, Params... params) {
  void* const handle = loaded().handle;
  if (handle == nullptr) return otherwise;
  const auto function = reinterpret_cast<Result (*)(Params...)>(dlsym(handle, name));
  return function == nullptr ? otherwise : function(params...);
}

constexpr cudnnStatus_t kAbsent = CUDNN_STATUS_NOT_INITIALIZED;

}  // namespace

const CudnnLibrary& cudnn_library() { return loaded().library; }

}  // namespace farspan::cuda

using farspan::cuda::hand_on;
using farspan::cuda::kAbsent;

extern "C" {

std::size_t cudnnGetVersion() { return hand_on("cudnnGetVersion", std::size_t{0}); }
const char* cudnnGetErrorString(cudnnStatus_t status) {
  return hand_on("cudnnGetErrorString", "cuDNN is not loaded", status);
}
void cudnnGetLastErrorString(char* message, std::size_t max_size) {
  if (max_size > 0) message[0] = '\0';
  if (void* const handle = farspan::cuda::loaded().handle)
    if (const auto function = reinterpret_cast<void (*)(char*, std::size_t)>(
            dlsym(handle, "cudnnGetLastErrorString")))
      function(message, max_size);
}
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) { return hand_on("cudnnCreate", kAbsent, handle); }
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  return hand_on("cudnnDestroy", kAbsent, handle);
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  return hand_on("cudnnSetStream", kAbsent, handle, stream);
}
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t* stream) {
  return hand_on("cudnnGetStream", kAbsent, handle, stream);
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* descriptor) {
  return hand_on("cudnnBackendCreateDescriptor", kAbsent, type, descriptor);
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  return hand_on("cudnnBackendDestroyDescriptor", kAbsent, descriptor);
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  return hand_on("cudnnBackendFinalize", kAbsent, descriptor);
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t count,
                                       const void* values) {
  return hand_on("cudnnBackendSetAttribute", kAbsent, descriptor, name, type, count, values);
}
cudnnStatus_t cudnnBackendGetAttribute(const cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t requested,
                                       std::int64_t* count, void* values) {
  return hand_on("cudnnBackendGetAttribute", kAbsent, descriptor, name, type, requested, count,
                 values);
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t variant_pack) {
  return hand_on("cudnnBackendExecute", kAbsent, handle, plan, variant_pack);
}

// Of convolutions; called by inline functions that only a build without optimisation keeps.
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t*) { return kAbsent; }
cudnnStatus_t cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t) { return kAbsent; }
cudnnStatus_t cudnnSetFilterNdDescriptor(cudnnFilterDescriptor_t, cudnnDataType_t,
                                         cudnnTensorFormat_t, int, const int*) {
  return kAbsent;
}
cudnnStatus_t cudnnReorderFilterAndBias(cudnnHandle_t, const cudnnFilterDescriptor_t,
                                        cudnnReorderType_t, const void*, void*, int, const void*,
                                        void*) {
  return kAbsent;
}

// The frontend also holds kernels of its own, for other operations, which it would compile by nvrtc
// when asked to. It is not asked to.
nvrtcResult nvrtcCreateProgram(nvrtcProgram*, const char*, const char*, int, const char* const*,
                               const char* const*) {
  return NVRTC_ERROR_INTERNAL_ERROR;
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram, int, const char* const*) {
  return NVRTC_ERROR_INTERNAL_ERROR;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram*) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram, std::size_t*) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcGetCUBIN(nvrtcProgram, char*) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram, std::size_t*) {
  return NVRTC_ERROR_INTERNAL_ERROR;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram, char*) { return NVRTC_ERROR_INTERNAL_ERROR; }

}  // extern "C"
