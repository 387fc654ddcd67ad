// xPos (Sun et al. 2022) on packed operands. The products of dims c and c + D/2 of q and k count
// 2^(decay[c] p) times, p = (i - j) stride + position. With a reference row r at or before row i,
//   2^(decay p(i, j)) = 2^(decay (i - r) stride) * 2^(decay p(r, j)),
// so rows of Q are packed times the first factor and rows of K times the second, each rounded once.
// No factor overflows: i - r is never negative, and p(r, j) is so only for keys between r and the
// last row that shares it, which are few enough (Bias::decay_rows) for 2^24. A far key underflows
// to 0, as it should. Gradients of q and k are multiplied by the same factors on their way out.
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/pack-inl.h"

namespace farspan::cpu {
namespace {

// 2^(decay p) of dims c .. c + kLanes.
template <class I>
typename I::V decay_factor(const Bias& bias, Index c, Index p) {
  // Of keys that no row of the reference sees the factor does not matter; it must be finite.
  const Index least = (1 - bias.decay_rows) * bias.stride;
  return I::exp2(I::mul(I::load(bias.decay + c), I::set1(static_cast<float>(larger(p, least)))));
}

template <class I, class In>
[[gnu::noinline]] void decay_rows(Source<In> x, const Bias& bias, Index first, Index step, In* to) {
  for (Index r = 0; r < x.rows; ++r)
    for (Index c = 0; c < x.columns; c += I::kLanes) {
      const Index valid = x.columns - c;
      const typename I::V row = I::as_floats(I::load_row(x.data + r * x.stride + c, valid));
      I::store_row(to + r * x.columns + c, I::mul(row, decay_factor<I>(bias, c, first + r * step)),
                   valid);
    }
}

// x with row r at distance first + r * step, written to `to` (rows, columns), or x itself without
// xPos.
template <class I, class In>
Source<In> decayed(Source<In> x, const Bias& bias, Index first, Index step, In* to) {
  if (!bias.decay) return x;
  decay_rows<I>(x, bias, first, step, to);
  return {to, x.columns, x.rows, x.columns};
}

// sums[i] *= factor of dim c + i at distance p, for i < count rounded up to kLanes.
template <class I>
[[gnu::noinline]] void decay_sums(const Bias& bias, float* sums, Index c, Index count, Index p) {
  for (Index i = 0; i < count; i += I::kLanes)
    I::store(sums + i, I::mul(I::load(sums + i), decay_factor<I>(bias, c + i, p)));
}

}  // namespace
}  // namespace farspan::cpu
