// What the attention kernels ask of an instruction set, and its plain x86-64 form (4 lanes of GCC
// vectors). A set `I` gives:
//   V, Dw        kLanes f32 values; kLanes dwords, each the bits of one f32 or of a pair of bf16
//   kPair        elements per dword of a packed tile: 1 (tiles are f32) or 2 (tiles are bf16)
//   kStripRows x kPanelVectors   the block of accumulators that stays in registers
//   dot(sum, a, b)               sum + a * b over the kPair elements of each dword
//   exp2(x)      within 2 ulp for -126 <= x <= 30, exactly 0 below that (so for -inf), 1 for 0, NaN
//                for NaN
//   zero_outside(x, lo, hi)      lanes [lo, hi) kept, any lo and hi
//   load_row, store_row          `valid` elements of either type, missing ones read as 0
//   store_operand(row, c, x)     elements [c, c + kLanes) of a row of a packed A operand
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/kernel_table.h"

namespace farspan::cpu {
namespace {

struct PortableF32 {
  using V [[gnu::vector_size(16)]] = float;
  using Dw [[gnu::vector_size(16)]] = std::uint32_t;
  static constexpr Index kLanes = 4;
  static constexpr Index kPair = 1;
  static constexpr int kStripRows = 6, kPanelVectors = 2;  // 12 accumulators of 16 registers

  static V load(const float* p) {
    V x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, V x) { __builtin_memcpy(p, &x, sizeof x); }
  static Dw load_dwords(const std::uint32_t* p) {
    Dw x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static void store_dwords(std::uint32_t* p, Dw x) { __builtin_memcpy(p, &x, sizeof x); }
  static V as_floats(Dw x) { return reinterpret_cast<V>(x); }
  static Dw as_dwords(V x) { return reinterpret_cast<Dw>(x); }
  static V set1(float x) { return V{x, x, x, x}; }
  static Dw broadcast(std::uint32_t x) { return Dw{x, x, x, x}; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V dot(V sum, Dw a, Dw b) { return sum + as_floats(a) * as_floats(b); }
  static float reduce_add(V x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float reduce_max(V x) {
    const float a = x[0] > x[1] ? x[0] : x[1];
    const float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
  }

  static V zero_outside(V x, Index lo, Index hi) {
    for (int lane = 0; lane < 4; ++lane)
      if (lane < lo || lane >= hi) x[lane] = 0.0f;
    return x;
  }

  // 2^x = 2^n 2^r with |r| <= 1/2; minimax polynomial (Remez) with a constant term of exactly 1.
  static V exp2(V x) {
    const V magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const V shifted = x + magic;
    const V r = x - (shifted - magic);
    V y = set1(1.53458124e-4f) * r + set1(1.33999309e-3f);
    y = y * r + set1(9.61848907e-3f);
    y = y * r + set1(5.55032864e-2f);
    y = y * r + set1(2.40226462e-1f);
    y = y * r + set1(6.93147182e-1f);
    y = y * r + set1(1.0f);
    const Dw power = (as_dwords(shifted) - as_dwords(magic) + broadcast(127)) << 23;
    const V result = y * as_floats(power);
    return x < set1(-126.0f) ? set1(0.0f) : result;
  }

  static Dw load_row(const float* p, Index valid) { return as_dwords(load_partial(p, valid)); }
  static Dw load_row(const std::uint16_t* p, Index valid) {
    Dw x = {};
    for (Index i = 0; i < 4 && i < valid; ++i) x[i] = static_cast<std::uint32_t>(p[i]) << 16;
    return x;
  }

  static void transpose(Dw (&r)[4]) {
    const Dw a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    const Dw b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    const Dw c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const Dw d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
  }

  static void store_row(float* p, V x, Index valid) {
    for (Index i = 0; i < 4 && i < valid; ++i) p[i] = x[i];
  }
  static void store_row(std::uint16_t* p, V x, Index valid) {
    const Dw u = as_dwords(x);
    for (Index i = 0; i < 4 && i < valid; ++i) {
      const bool nan = (u[i] & 0x7fffffffu) > 0x7f800000u;
      const std::uint32_t rounded = (u[i] + 0x7fffu + ((u[i] >> 16) & 1u)) >> 16;
      p[i] = static_cast<std::uint16_t>(nan ? (u[i] >> 16) | 0x40u : rounded);
    }
  }
  static V load_partial(const float* p, Index valid) {
    V x = {};
    for (Index i = 0; i < 4 && i < valid; ++i) x[i] = p[i];
    return x;
  }
  static void store_operand(std::uint32_t* row, Index column, V x) {
    store_dwords(row + column, as_dwords(x));
  }
};

}  // namespace
}  // namespace farspan::cpu
