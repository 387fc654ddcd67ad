// Small matrix products of packed tiles in vector registers. A "strip" of up to kRows rows of A
// times a "panel" of up to kVectors vectors of columns of B is held in registers for the whole
// depth: kRows broadcasts and kVectors loads feed kRows * kVectors multiply-adds per step.
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/pack-inl.h"

namespace farspan::cpu {
namespace {

// Exponentials are taken to base 2: e^x = 2^(x log2 e), and the factor joins the scale of scores.
inline constexpr float kLog2E = 1.44269504f;

// What a multiplier `M` (this one, or TileGemm for AMX) gives:
//   Isa                       lanes for everything that is not a product
//   kRows, kVectors           strip and panel
//   kDepth                    depth, in dwords, must be a multiple of this
//   kUnit                     ranges of keys or rows are widened to multiples of this many elements
//   kSubRows                  rows of Q that share one pass over a key tile in L1
//   multiply                  C = A B;   multiply_add: C = diag(row_scale) C + A B
template <class I>
struct SimdGemm {
  using Isa = I;
  using Dword = std::uint32_t;
  static constexpr Index kRows = I::kStripRows, kVectors = I::kPanelVectors;
  static constexpr Index kDepth = 1;
  static constexpr Index kUnit = I::kLanes;
  static constexpr Index kSubRows = 8 * kRows;
  static constexpr Index kSpareRows = 0;  // rows of A read beyond the last one

  // Per-thread set-up around a task: none.
  struct Session {};

  // a (m, depth) with lda; b: block n at b + n * b_block; c (m, n * kLanes) with ldc.
  static void multiply(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth,
                       float* c, Index ldc, Index m, Index n) {
    by_rows<false>(a, lda, b, b_block, depth, c, ldc, m, n, nullptr);
  }
  static void multiply_add(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth,
                           float* c, Index ldc, Index m, Index n, const float* row_scale) {
    by_rows<true>(a, lda, b, b_block, depth, c, ldc, m, n, row_scale);
  }

 private:
  template <int kM, int kN, bool kAdd>
  [[gnu::noinline]] static void block(const Dword* a, Index lda, const Dword* b, Index b_block,
                                      Index depth, float* c, Index ldc, const float* row_scale) {
    typename I::V sum[kM][kN];
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) {
        if constexpr (kAdd)
          sum[m][n] = I::mul(I::load(c + m * ldc + n * I::kLanes), I::set1(row_scale[m]));
        else
          sum[m][n] = I::set1(0.0f);
      }
    }
    for (Index k = 0; k < depth; ++k) {
      typename I::Dw column[kN];
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) column[n] = I::load_dwords(b + n * b_block + k * I::kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kM; ++m) {
        const typename I::Dw value = I::broadcast(a[m * lda + k]);
#pragma GCC unroll 16
        for (int n = 0; n < kN; ++n) sum[m][n] = I::dot(sum[m][n], value, column[n]);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) I::store(c + m * ldc + n * I::kLanes, sum[m][n]);
    }
  }

  template <bool kAdd, int kM = static_cast<int>(kRows)>
  static void by_rows(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth,
                      float* c, Index ldc, Index m, Index n, const float* row_scale) {
    if (m == kM) return by_vectors<kAdd, kM>(a, lda, b, b_block, depth, c, ldc, n, row_scale);
    if constexpr (kM > 1) by_rows<kAdd, kM - 1>(a, lda, b, b_block, depth, c, ldc, m, n, row_scale);
  }
  template <bool kAdd, int kM, int kN = static_cast<int>(kVectors)>
  static void by_vectors(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth,
                         float* c, Index ldc, Index n, const float* row_scale) {
    if (n == kN) return block<kM, kN, kAdd>(a, lda, b, b_block, depth, c, ldc, row_scale);
    if constexpr (kN > 1)
      by_vectors<kAdd, kM, kN - 1>(a, lda, b, b_block, depth, c, ldc, n, row_scale);
  }
};

// Calls body(first, count) on panels of equal width that cover `vectors` vectors.
template <class M, class Body>
void for_panels(Index vectors, const Body& body) {
  if (vectors <= 0) return;
  const Index width = ceil_div(vectors, ceil_div(vectors, M::kVectors));
  for (Index first = 0; first < vectors; first += width)
    body(first, smaller(width, vectors - first));
}

}  // namespace
}  // namespace farspan::cpu
