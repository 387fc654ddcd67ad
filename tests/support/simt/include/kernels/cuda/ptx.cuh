// Stands in for kernels/cuda/ptx.cuh (tests/support/simt): the same wrappers, each as its contract
// there says. A new wrapper goes into both files.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "support/simt/tensor_core.h"

namespace farspan::cuda {

inline void cp_async_16(void* smem, const void* gmem, bool valid) {
  simt::copy_async(smem, gmem, valid);
}

inline void cp_async_commit() { simt::copy_async_commit(); }

template <int kPending>
void cp_async_wait() {
  simt::copy_async_wait(kPending);
}

inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* smem) {
  simt::ldmatrix(r, smem, /*transposed=*/false);
}

inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* smem) {
  simt::ldmatrix(r, smem, /*transposed=*/true);
}

inline void mma_bf16_16816(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                           std::uint32_t b1) {
  simt::mma_bf16(d, a, b0, b1);
}

inline void red_add_f32x4(float* gmem, float x, float y, float z, float w) {
  if (reinterpret_cast<std::uintptr_t>(gmem) % 16 != 0)
    simt::fail("red.global.add.v4.f32 at an address that is not a multiple of 16");
  const float terms[] = {x, y, z, w};
  for (int i = 0; i < 4; ++i) atomicAdd(gmem + i, terms[i]);
}

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

inline std::uint32_t pack_bf16(float low, float high) {
  return static_cast<std::uint32_t>(__nv_bfloat16::round(low)) |
         static_cast<std::uint32_t>(__nv_bfloat16::round(high)) << 16;
}

}  // namespace farspan::cuda
