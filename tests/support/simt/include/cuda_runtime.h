// Stands in for CUDA's <cuda_runtime.h> (tests/support/simt): the dialect of kernels, for g++, and
// the part of the runtime's interface that Farspan uses, over the emulated device.
#pragma once

#include "support/simt/atomics.h"
#include "support/simt/device_math.h"
#include "support/simt/dialect.h"
#include "support/simt/runtime_api.h"
#include "support/simt/vector_types.h"
