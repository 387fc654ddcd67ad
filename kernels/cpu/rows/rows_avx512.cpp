// AVX-512 F, BW, DQ and VL.
#define FARSPAN_LANES 16
#include "kernels/cpu/rows/rows.inl"

namespace farspan::cpu {
const RowOps& row_ops_avx512() { return kOps; }
}  // namespace farspan::cpu
