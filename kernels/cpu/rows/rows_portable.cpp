// The baseline of x86-64: SSE2.
#define FARSPAN_LANES 4
#include "kernels/cpu/rows/rows.inl"

namespace farspan::cpu {
const RowOps& row_ops_portable() { return kOps; }
}  // namespace farspan::cpu
