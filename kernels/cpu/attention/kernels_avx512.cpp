#include "kernels/cpu/attention/simd_avx512-inl.h"
#include "kernels/cpu/attention/table-inl.h"

namespace farspan::cpu {

const KernelTable& avx512_f32() { return Kernels<SimdGemm<Avx512F32>, float>::kTable; }
const KernelTable& avx512_bf16_widened() {
  return Kernels<SimdGemm<Avx512F32>, std::uint16_t>::kTable;
}

}  // namespace farspan::cpu
