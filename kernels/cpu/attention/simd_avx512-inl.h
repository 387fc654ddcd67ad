// AVX-512 lanes for the attention kernels; the interface is described in simd_portable-inl.h.
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention/kernel_table.h"

namespace farspan::cpu {
namespace {

struct Avx512 {
  using V = __m512;    // 16 f32
  using Dw = __m512i;  // 16 dwords: f32 bits or pairs of bf16
  static constexpr Index kLanes = 16;

  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V x) { _mm512_storeu_ps(p, x); }
  static Dw load_dwords(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
  static void store_dwords(std::uint32_t* p, Dw x) { _mm512_storeu_si512(p, x); }
  static V as_floats(Dw x) { return _mm512_castsi512_ps(x); }
  static Dw as_dwords(V x) { return _mm512_castps_si512(x); }
  static V set1(float x) { return _mm512_set1_ps(x); }
  static Dw broadcast(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static float reduce_add(V x) { return _mm512_reduce_add_ps(x); }
  static float reduce_max(V x) { return _mm512_reduce_max_ps(x); }

  static V zero_outside(V x, Index lo, Index hi) {
    const auto begin = static_cast<unsigned>(lo < 0 ? 0 : (lo > 16 ? 16 : lo));
    const auto end = static_cast<unsigned>(hi < 0 ? 0 : (hi > 16 ? 16 : hi));
    const unsigned mask = ((1u << end) - 1u) & ~((1u << begin) - 1u);
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(mask), x);
  }

  static V exp2(V x) {
    const V n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V r = sub(x, n);
    V y = fma(set1(1.53458124e-4f), r, set1(1.33999309e-3f));
    y = fma(y, r, set1(9.61848907e-3f));
    y = fma(y, r, set1(5.55032864e-2f));
    y = fma(y, r, set1(2.40226462e-1f));
    y = fma(y, r, set1(6.93147182e-1f));
    y = fma(y, r, set1(1.0f));
    const __mmask16 normal = _mm512_cmp_ps_mask(x, set1(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, y, n);
  }

  // Elements [0, valid) of a row, the rest 0.
  static Dw load_row(const float* p, Index valid) {
    if (valid >= 16) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << valid) - 1u), p);
  }
  static __m256i load_halves(const std::uint16_t* p, Index valid) {
    if (valid >= 16) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << valid) - 1u), p);
  }
  static Dw load_row(const std::uint16_t* p, Index valid) {
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(p, valid)), 16);
  }
  static Dw load_row_pairs(const std::uint16_t* p, Index valid) {
    if (valid >= 32) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi16((__mmask32{1} << valid) - 1u, p);
  }
  // Dword c holds (even[c], odd[c]).
  static Dw interleave(const std::uint16_t* even, const std::uint16_t* odd, Index valid) {
    const Dw low = _mm512_cvtepu16_epi32(load_halves(even, valid));
    if (odd == nullptr) return low;
    const Dw high = _mm512_cvtepu16_epi32(load_halves(odd, valid));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }

  static void transpose(Dw (&r)[16]) {
    Dw t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 g + c]: rows 4g..4g+3, columns c, c + 4, c + 8, c + 12 in its 128-bit lanes.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      t[c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
      t[4 + c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
      t[8 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
      t[12 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      r[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88);
      r[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
      r[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
      r[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
    }
  }

  static void store_row(float* p, V x, Index valid) {
    if (valid >= 16) return store(p, x);
    _mm512_mask_storeu_ps(p, lanes_below(valid), x);
  }
  static void store_row(std::uint16_t* p, V x, Index valid) {
    const Dw u = as_dwords(x);
    const Dw odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const Dw rounded = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
    const Dw quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m256i halves = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
    _mm256_mask_storeu_epi16(p, valid >= 16 ? __mmask16{0xffff} : lanes_below(valid), halves);
  }
  static V load_partial(const float* p, Index valid) {
    return valid >= 16 ? load(p) : _mm512_maskz_loadu_ps(lanes_below(valid), p);
  }

 private:
  static __mmask16 lanes_below(Index n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

// Tiles multiplied in f32.
struct Avx512F32 : Avx512 {
  static constexpr Index kPair = 1;
  static constexpr int kStripRows = 6, kPanelVectors = 4;  // 24 accumulators of 32 registers
  static V dot(V sum, Dw a, Dw b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  static void store_operand(std::uint32_t* row, Index column, V x) {
    _mm512_storeu_ps(row + column, x);
  }
};

#ifdef __AVX512BF16__
// Tiles multiplied as pairs of bf16, summed in f32.
struct Avx512Bf16 : Avx512 {
  static constexpr Index kPair = 2;
  static constexpr int kStripRows = 6, kPanelVectors = 4;
  static V dot(V sum, Dw a, Dw b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  // Rounds x to bf16 at elements [column, column + 16) of a row of operand A.
  static void store_operand(std::uint32_t* row, Index column, V x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + column / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
  // Rounds two rows; stores both as operand A, returns them interleaved as operand B.
  static Dw store_operands(std::uint32_t* even, std::uint32_t* odd, Index column, V x, V y) {
    const Dw both = reinterpret_cast<Dw>(_mm512_cvtne2ps_pbh(y, x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(even + column / 2),
                        _mm512_castsi512_si256(both));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd + column / 2),
                        _mm512_extracti64x4_epi64(both, 1));
    const Dw zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                    23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(zip, both);
  }
};
#endif

}  // namespace
}  // namespace farspan::cpu
