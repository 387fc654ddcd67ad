// AVX2 + FMA lanes for the attention kernels; the interface is described in simd_portable-inl.h.
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention/kernel_table.h"

namespace farspan::cpu {
namespace {

struct Avx2F32 {
  using V = __m256;    // 8 f32
  using Dw = __m256i;  // 8 dwords
  static constexpr Index kLanes = 8;
  static constexpr Index kPair = 1;
  static constexpr int kStripRows = 6, kPanelVectors = 2;  // 12 accumulators of 16 registers

  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V x) { _mm256_storeu_ps(p, x); }
  static Dw load_dwords(const std::uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void store_dwords(std::uint32_t* p, Dw x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  static V as_floats(Dw x) { return _mm256_castsi256_ps(x); }
  static Dw as_dwords(V x) { return _mm256_castps_si256(x); }
  static V set1(float x) { return _mm256_set1_ps(x); }
  static Dw broadcast(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V dot(V sum, Dw a, Dw b) {
    return _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum);
  }
  static float reduce_add(V x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  static float reduce_max(V x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }

  static V zero_outside(V x, Index lo, Index hi) {
    const auto begin = static_cast<int>(lo < 0 ? 0 : (lo > 8 ? 8 : lo));
    const auto end = static_cast<int>(hi < 0 ? 0 : (hi > 8 ? 8 : hi));
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane);
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane);
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_andnot_si256(below, inside)));
  }

  static V exp2(V x) {
    const V n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V r = sub(x, n);
    V y = fma(set1(1.53458124e-4f), r, set1(1.33999309e-3f));
    y = fma(y, r, set1(9.61848907e-3f));
    y = fma(y, r, set1(5.55032864e-2f));
    y = fma(y, r, set1(2.40226462e-1f));
    y = fma(y, r, set1(6.93147182e-1f));
    y = fma(y, r, set1(1.0f));
    const Dw power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    const V normal = _mm256_cmp_ps(x, set1(-126.0f), _CMP_NLT_UQ);
    return _mm256_and_ps(normal, mul(y, _mm256_castsi256_ps(power)));
  }

  static Dw load_row(const float* p, Index valid) {
    return _mm256_castps_si256(load_partial(p, valid));
  }
  static Dw load_row(const std::uint16_t* p, Index valid) {
    alignas(16) std::uint16_t part[8] = {};
    if (valid < 8) {
      __builtin_memcpy(part, p, static_cast<std::size_t>(valid) * 2);
      p = part;
    }
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
  }

  static void transpose(Dw (&r)[8]) {
    __m256 t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(as_floats(r[i]), as_floats(r[i + 1]));
      t[i + 1] = _mm256_unpackhi_ps(as_floats(r[i]), as_floats(r[i + 1]));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = as_dwords(_mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
      r[i + 4] = as_dwords(_mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
    }
  }

  static void store_row(float* p, V x, Index valid) {
    if (valid >= 8) return store(p, x);
    alignas(32) float part[8];
    _mm256_store_ps(part, x);
    __builtin_memcpy(p, part, static_cast<std::size_t>(valid) * 4);
  }
  static void store_row(std::uint16_t* p, V x, Index valid) {
    const Dw u = as_dwords(x);
    const Dw odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const Dw rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const Dw quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    const Dw nan = as_dwords(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    alignas(32) std::uint32_t wide[8];
    store_dwords(wide, _mm256_blendv_epi8(rounded, quiet, nan));
    for (Index i = 0; i < 8 && i < valid; ++i) p[i] = static_cast<std::uint16_t>(wide[i]);
  }
  static V load_partial(const float* p, Index valid) {
    if (valid >= 8) return load(p);
    alignas(32) float part[8] = {};
    __builtin_memcpy(part, p, static_cast<std::size_t>(valid) * 4);
    return _mm256_load_ps(part);
  }
  static void store_operand(std::uint32_t* row, Index column, V x) {
    store_dwords(row + column, as_dwords(x));
  }
};

}  // namespace
}  // namespace farspan::cpu
