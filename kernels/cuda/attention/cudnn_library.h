// cuDNN's shared library, loaded when first asked for.
#pragma once

#include <string>

namespace farspan::cuda {

struct CudnnLibrary {
  int version = 0;     // 91900; 0: not loaded
  std::string absent;  // the loader's words, where it is not loaded
};

// Loads libcudnn.so.9 at the first call, by the loader's usual search (LD_LIBRARY_PATH, the
// program's own run path, the system's list). Once per process, like any shared library.
const CudnnLibrary& cudnn_library();

}  // namespace farspan::cuda
