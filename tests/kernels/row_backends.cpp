// Rows of the backends that make_backend makes.
#include "support/parity_row.h"

namespace farspan::testing {

std::vector<DeviceKind> row_kinds() { return {DeviceKind::kCpu}; }

std::unique_ptr<Backend> make_row_backend(const BackendOptions& options) {
  return make_backend(options);
}

}  // namespace farspan::testing
