// The only PTX of the project: thin wrappers, so that kernels are plain C++ and can also be
// compiled by g++ against tests/support/simt, which has its own version of this file. A wrapper
// does one instruction and no more; what it promises is written here, for both versions.
//
// Fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), lane l of a warp, g = l
// / 4, t = l % 4, two bf16 in each 32-bit register, the lower column in the lower half:
//   A (16 x 16, rows):  a[0] (g, 2t..2t+1)      a[1] (g + 8, 2t..)
//                       a[2] (g, 2t + 8..)      a[3] (g + 8, 2t + 8..)
//   B (16 x 8, k x n):  b[0] (k 2t..2t+1, n g)  b[1] (k 2t + 8.., n g)
//   C, D (16 x 8, f32): d[0], d[1] (g, 2t..2t+1)   d[2], d[3] (g + 8, 2t..2t+1)
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace farspan::cuda {

// Copies 16 bytes to shared memory without waiting, 16 zero bytes where !valid (gmem is then not
// read, but must be some address). Both addresses are multiples of 16. Complete for this thread
// after the cp_async_wait that covers its group; for other threads after a barrier behind that.
__device__ __forceinline__ void cp_async_16(void* smem, const void* gmem, bool valid) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(smem));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(gmem), "r"(bytes)
               : "memory");
}

// Ends this thread's group of copies.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most `kPending` of this thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address (a multiple of 16) of row l % 8
// of matrix l / 8, and gets, of matrix i, elements (row l / 4, columns 2 (l % 4)..+1) in r[i].
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* smem) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(smem));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// As ldmatrix_x4, each matrix transposed: r[i] holds (rows 2 (l % 4)..+1, column l / 4).
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* smem) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(smem));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// d += a b, bf16 products added in f32.
__device__ __forceinline__ void mma_bf16_16816(float (&d)[4], const std::uint32_t (&a)[4],
                                               std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Adds four numbers to those at gmem, a multiple of 16, each addition atomic by itself; the order
// of additions is open. One instruction on sm_90, four before.
__device__ __forceinline__ void red_add_f32x4(float* gmem, float x, float y, float z, float w) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"l"(gmem), "f"(x), "f"(y),
               "f"(z), "f"(w)
               : "memory");
#else
  atomicAdd(gmem, x);
  atomicAdd(gmem + 1, y);
  atomicAdd(gmem + 2, z);
  atomicAdd(gmem + 3, w);
#endif
}

// 2^x, 2 ulp; 0 for -inf; subnormal results are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Two floats, each rounded to nearest even, the first in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

}  // namespace farspan::cuda
