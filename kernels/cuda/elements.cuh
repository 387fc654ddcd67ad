// Element-wise operations: element i of every output comes from elements i of the inputs, so an
// output may be an input. An operation says how it loads and stores N elements; the loop, the
// vector width and the tail are here.
//
//   template <typename T> struct Twice {
//     const T* x; T* y;
//     template <int N> struct In { Floats<N> x; };
//     template <int N> __device__ In<N> load(std::int64_t i) const { return {load_floats<N>(x +
//     i)}; } template <int N> __device__ void store(std::int64_t i, const In<N>& in) const { ... }
//   };
//   over_elements<kPackWidth<T>>(Twice<T>{x, y}, n, aligned_to(16, {x, y}), stream);
#pragma once

#include "kernels/cuda/floats.cuh"

namespace farspan::cuda {

// Two packs of each thread are under way at once: enough to fill the memory system at any
// occupancy.
template <int N, typename Op>
__global__ void __launch_bounds__(kBlock) elements_kernel(Op op, std::int64_t n) {
  const std::int64_t packs = n / N, step = stride();
  std::int64_t p = first_index();
  for (; p + step < packs; p += 2 * step) {
    const auto one = op.template load<N>(p * N);
    const auto two = op.template load<N>((p + step) * N);
    op.template store<N>(p * N, one);
    op.template store<N>((p + step) * N, two);
  }
  if (p < packs) op.template store<N>(p * N, op.template load<N>(p * N));
  if (const std::int64_t i = packs * N + first_index(); i < n)
    op.template store<1>(i, op.template load<1>(i));
}

// aligned: all addresses that op moves N elements at are multiples of what load_floats<N> needs.
template <int N, typename Op>
void over_elements(const Op& op, std::int64_t n, bool aligned, cudaStream_t stream) {
  if (n == 0) return;
  if (aligned)
    launch(elements_kernel<N, Op>, linear(ceil_div(n, N), stream), op, n);
  else
    launch(elements_kernel<1, Op>, linear(n, stream), op, n);
}

}  // namespace farspan::cuda
