// AVX2 and FMA.
#define FARSPAN_LANES 8
#include "kernels/cpu/rows/rows.inl"

namespace farspan::cpu {
const RowOps& row_ops_avx2() { return kOps; }
}  // namespace farspan::cpu
