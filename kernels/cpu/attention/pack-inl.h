// Packed tiles. A packed tile is a matrix of dwords; a dword holds kPair consecutive elements along
// the dimension that is summed over ("depth").
//   operand A   (rows, depth)                 row-major: one dword is broadcast per step
//   operand B   (blocks, depth, kLanes)       kLanes columns side by side: one vector per step
// The same layouts feed the SIMD kernels and the tile registers of AMX. A source matrix X (rows x
// columns in memory) becomes either operand, with depth along its rows or its columns:
//   depth = columns:  A by pack_straight, B by pack_transposed      (kRowPairs = false)
//   depth = rows:     B by pack_straight, A by pack_transposed      (kRowPairs = true)
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/kernel_table.h"

namespace farspan::cpu {
namespace {

constexpr Index round_up(Index n, Index unit) { return (n + unit - 1) / unit * unit; }
constexpr Index ceil_div(Index n, Index unit) { return (n + unit - 1) / unit; }
constexpr Index smaller(Index a, Index b) { return a < b ? a : b; }
constexpr Index larger(Index a, Index b) { return a > b ? a : b; }
constexpr Index clamp(Index x, Index lo, Index hi) { return x < lo ? lo : (x > hi ? hi : x); }

// rows x columns elements, `stride` elements from one row to the next. Passed by value: what is
// stored may alias anything in memory, and registers are not in memory.
template <class In>
struct Source {
  const In* data;
  Index stride, rows, columns;
};

// Dwords (r, c .. c + kLanes) of the source seen as dwords; 0 outside of it.
template <class I, bool kRowPairs, class In>
typename I::Dw source_dwords(Source<In> x, Index r, Index c) {
  if constexpr (I::kPair == 1) {
    if (r >= x.rows || c >= x.columns) return I::broadcast(0);
    return I::load_row(x.data + r * x.stride + c, x.columns - c);
  } else if constexpr (kRowPairs) {
    if (2 * r >= x.rows || c >= x.columns) return I::broadcast(0);
    const In* even = x.data + 2 * r * x.stride + c;
    return I::interleave(even, 2 * r + 1 < x.rows ? even + x.stride : nullptr, x.columns - c);
  } else {
    if (r >= x.rows || 2 * c >= x.columns) return I::broadcast(0);
    return I::load_row_pairs(x.data + r * x.stride + 2 * c, x.columns - 2 * c);
  }
}

// dst[r * row_stride + c / kLanes * block_stride + c % kLanes] = dword (r, c), for r < num_rows and
// c < num_columns rounded up to kLanes.
template <class I, bool kRowPairs, class In>
void pack_straight(Source<In> x, Index num_rows, Index num_columns, std::uint32_t* dst,
                   Index row_stride, Index block_stride) {
  for (Index r = 0; r < num_rows; ++r)
    for (Index c = 0; c < num_columns; c += I::kLanes)
      I::store_dwords(dst + r * row_stride + c / I::kLanes * block_stride,
                      source_dwords<I, kRowPairs>(x, r, c));
}

// dst[c * row_stride + r / kLanes * block_stride + r % kLanes] = dword (r, c), for c < num_columns
// and r < num_rows rounded up to kLanes.
template <class I, bool kRowPairs, class In>
void pack_transposed(Source<In> x, Index num_rows, Index num_columns, std::uint32_t* dst,
                     Index row_stride, Index block_stride) {
  for (Index r = 0; r < num_rows; r += I::kLanes) {
    std::uint32_t* block = dst + r / I::kLanes * block_stride;
    for (Index c = 0; c < num_columns; c += I::kLanes) {
      typename I::Dw square[I::kLanes];
#pragma GCC unroll 16
      for (Index i = 0; i < I::kLanes; ++i) square[i] = source_dwords<I, kRowPairs>(x, r + i, c);
      I::transpose(square);
      const Index count = smaller(I::kLanes, num_columns - c);
      if (count == I::kLanes) {
#pragma GCC unroll 16
        for (Index i = 0; i < I::kLanes; ++i)
          I::store_dwords(block + (c + i) * row_stride, square[i]);
      } else {
        for (Index i = 0; i < count; ++i) I::store_dwords(block + (c + i) * row_stride, square[i]);
      }
    }
  }
}

// Hands out pieces of a thread's workspace; with a null base it only counts.
class Cutter {
 public:
  explicit Cutter(std::byte* base) : base_(base) {}
  template <class T>
  T* take(Index count) {
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<std::size_t>(round_up(count * static_cast<Index>(sizeof(T)), 64));
    return p;
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

}  // namespace
}  // namespace farspan::cpu
