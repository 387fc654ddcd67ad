// The products of gemm_simd-inl.h by tile registers (AMX, tdpbf16ps): 2 x 2 tiles of 16 x 16 sums.
// `Tiles` is the thin layer of instructions: AmxTiles on processors that have them, EmulatedTiles
// (plain code, same layout and order of pairs) to test everything else where they are absent.
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/gemm_simd-inl.h"
#include "kernels/cpu/attention/simd_avx512-inl.h"

namespace farspan::cpu {
namespace {

template <class Tiles>
struct TileGemm {
  using Isa = Avx512Bf16;
  using Dword = std::uint32_t;
  static constexpr Index kRows = 32, kVectors = 2;
  static constexpr Index kDepth = 16;  // a tile of A is 16 rows of 16 pairs
  static constexpr Index kUnit = 32;
  static constexpr Index kSubRows = 64;
  static constexpr Index kSpareRows = 32;
  using Session = typename Tiles::Session;

  static void multiply(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth,
                       float* c, Index ldc, Index m, Index n) {
    run<false>(a, lda, b, b_block, depth, c, ldc, m, n);
  }
  static void multiply_add(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth,
                           float* c, Index ldc, Index m, Index n, const float* row_scale) {
    for (Index r = 0; r < m; ++r)
      for (Index v = 0; v < n; ++v) {
        float* p = c + r * ldc + v * 16;
        Isa::store(p, Isa::mul(Isa::load(p), Isa::set1(row_scale[r])));
      }
    run<true>(a, lda, b, b_block, depth, c, ldc, m, n);
  }

 private:
  // Tile registers: 0..3 sums (2 r + n), 4..5 rows of A, 6..7 columns of B. Whole tiles go straight
  // to C; a last tile with fewer than 16 rows goes through `edge`, since C's next rows belong to
  // others. Rows of A beyond m may hold anything: they only reach rows of sums that are dropped.
  template <bool kAdd>
  static void run(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth, float* c,
                  Index ldc, Index m, Index n) {
    const Index whole = m / 16 * 16;
    if (whole == 32 && n == 2) return tiles<kAdd, 2, 2>(a, lda, b, b_block, depth, c, ldc);
    for (Index r = 0; r < whole; r += 16) {
      if (n == 2)
        tiles<kAdd, 1, 2>(a + r * lda, lda, b, b_block, depth, c + r * ldc, ldc);
      else
        tiles<kAdd, 1, 1>(a + r * lda, lda, b, b_block, depth, c + r * ldc, ldc);
    }
    if (whole == m) return;
    alignas(64) float edge[16 * 32];
    copy_rows(edge, 32, c + whole * ldc, ldc, kAdd ? m - whole : 0, n);
    if (n == 2)
      tiles<kAdd, 1, 2>(a + whole * lda, lda, b, b_block, depth, edge, 32);
    else
      tiles<kAdd, 1, 1>(a + whole * lda, lda, b, b_block, depth, edge, 32);
    copy_rows(c + whole * ldc, ldc, edge, 32, m - whole, n);
  }

  static void copy_rows(float* to, Index ldt, const float* from, Index ldf, Index rows, Index n) {
    for (Index r = 0; r < rows; ++r)
      for (Index v = 0; v < n; ++v)
        Isa::store(to + r * ldt + v * 16, Isa::load(from + r * ldf + v * 16));
  }

  template <bool kAdd, int kM, int kN>
  static void tiles(const Dword* a, Index lda, const Dword* b, Index b_block, Index depth, float* c,
                    Index ldc) {
    Tiles t;
    if constexpr (kAdd) {
      t.template load<0>(c, ldc);
      if constexpr (kN == 2) t.template load<1>(c + 16, ldc);
      if constexpr (kM == 2) t.template load<2>(c + 16 * ldc, ldc);
      if constexpr (kM == 2 && kN == 2) t.template load<3>(c + 16 * ldc + 16, ldc);
    } else {
      t.template zero<0>();
      if constexpr (kN == 2) t.template zero<1>();
      if constexpr (kM == 2) t.template zero<2>();
      if constexpr (kM == 2 && kN == 2) t.template zero<3>();
    }
    for (Index k = 0; k < depth; k += 16) {
      t.template load<4>(a + k, lda);
      if constexpr (kM == 2) t.template load<5>(a + 16 * lda + k, lda);
      t.template load<6>(b + k * 16, 16);
      if constexpr (kN == 2) t.template load<7>(b + b_block + k * 16, 16);
      t.template dot<0, 4, 6>();
      if constexpr (kN == 2) t.template dot<1, 4, 7>();
      if constexpr (kM == 2) t.template dot<2, 5, 6>();
      if constexpr (kM == 2 && kN == 2) t.template dot<3, 5, 7>();
    }
    t.template store<0>(c, ldc);
    if constexpr (kN == 2) t.template store<1>(c + 16, ldc);
    if constexpr (kM == 2) t.template store<2>(c + 16 * ldc, ldc);
    if constexpr (kM == 2 && kN == 2) t.template store<3>(c + 16 * ldc + 16, ldc);
  }
};

}  // namespace
}  // namespace farspan::cpu
