#include "kernels/cpu/attention/simd_avx512-inl.h"
#include "kernels/cpu/attention/table-inl.h"

namespace farspan::cpu {

const KernelTable& avx512_bf16_native() {
  return Kernels<SimdGemm<Avx512Bf16>, std::uint16_t>::kTable;
}

}  // namespace farspan::cpu
