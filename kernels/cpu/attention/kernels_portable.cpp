#include "kernels/cpu/attention/simd_portable-inl.h"
#include "kernels/cpu/attention/table-inl.h"

namespace farspan::cpu {

const KernelTable& portable_f32() { return Kernels<SimdGemm<PortableF32>, float>::kTable; }
const KernelTable& portable_bf16() { return Kernels<SimdGemm<PortableF32>, std::uint16_t>::kTable; }

}  // namespace farspan::cpu
