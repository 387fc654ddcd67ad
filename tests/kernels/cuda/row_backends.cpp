// Rows of the CUDA backend: on a GPU, or on the emulated one where the program is linked with it.
#include "support/parity_row.h"

namespace farspan::testing {

std::vector<DeviceKind> row_kinds() { return {DeviceKind::kCuda}; }

std::unique_ptr<Backend> make_row_backend(const BackendOptions& options) {
  return make_backend(options);
}

}  // namespace farspan::testing
