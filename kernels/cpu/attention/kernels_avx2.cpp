#include "kernels/cpu/attention/simd_avx2-inl.h"
#include "kernels/cpu/attention/table-inl.h"

namespace farspan::cpu {

const KernelTable& avx2_f32() { return Kernels<SimdGemm<Avx2F32>, float>::kTable; }
const KernelTable& avx2_bf16() { return Kernels<SimdGemm<Avx2F32>, std::uint16_t>::kTable; }

}  // namespace farspan::cpu
