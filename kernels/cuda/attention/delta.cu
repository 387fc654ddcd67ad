#include <bit>

#include "core/error.h"
#include "kernels/cuda/attention/delta.h"
#include "kernels/cuda/launch.cuh"

namespace farspan::cuda {
namespace {

// A block takes these tokens of these heads: it reads runs of heads and writes runs of tokens.
constexpr int kTokens = 32, kHeads = 8;
static_assert(kTokens * kHeads == kBlock);

// a . b over one element, or over the elements of 16 bytes.
__device__ __forceinline__ float add_products(const float* a, const float* b, float sum) {
  return fmaf(*a, *b, sum);
}
__device__ __forceinline__ float add_products(const bf16* a, const bf16* b, float sum) {
  return fmaf(to_float(*a), to_float(*b), sum);
}
__device__ __forceinline__ float add_products(const float4* a, const float4* b, float sum) {
  const float4 x = *a, y = *b;
  return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}
__device__ __forceinline__ float add_pairs(unsigned a, unsigned b, float sum) {
  constexpr unsigned kHigh = 0xffff0000u;
  sum = fmaf(__uint_as_float(a << 16), __uint_as_float(b << 16), sum);
  return fmaf(__uint_as_float(a & kHigh), __uint_as_float(b & kHigh), sum);
}
__device__ __forceinline__ float add_products(const uint4* a, const uint4* b, float sum) {
  const uint4 x = *a, y = *b;
  return add_pairs(x.w, y.w, add_pairs(x.z, y.z, add_pairs(x.y, y.y, add_pairs(x.x, y.x, sum))));
}

// out, dout: (Tq, Hq, units) of an element or of 16 bytes of them. `lanes`, a power of two up to
// 32, share a row.
template <typename Unit>
__global__ void delta_kernel(const Unit* out, const Unit* dout, float* delta, std::int64_t num_q,
                             int num_heads, int units, int lanes) {
  __shared__ float sums[kHeads][kTokens + 1];
  const std::int64_t first_token = static_cast<std::int64_t>(blockIdx.x) * kTokens;
  const int first_head = static_cast<int>(blockIdx.y) * kHeads;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % lanes;
  for (int r = tid / lanes; r < kTokens * kHeads; r += kBlock / lanes) {
    const std::int64_t token = first_token + r / kHeads;
    const int head = first_head + r % kHeads;
    float sum = 0.0f;
    if (token < num_q && head < num_heads) {
      const std::int64_t row = (token * num_heads + head) * units;
      for (int u = lane; u < units; u += lanes)
        sum = add_products(out + row + u, dout + row + u, sum);
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) sums[r % kHeads][r / kHeads] = sum;
  }
  __syncthreads();
  const std::int64_t token = first_token + tid % kTokens;
  const int head = first_head + tid / kTokens;
  if (token < num_q && head < num_heads)
    delta[head * num_q + token] = sums[tid / kTokens][tid % kTokens];
}

template <typename Unit>
void run(const AttentionDeltaArgs& args, int units, cudaStream_t stream) {
  const std::int64_t num_q = args.out.shape[0];
  const int num_heads = static_cast<int>(args.out.shape[1]);
  const int lanes = static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::min(units, 32))));
  const dim3 grid(static_cast<unsigned>((num_q + kTokens - 1) / kTokens),
                  static_cast<unsigned>((num_heads + kHeads - 1) / kHeads));
  launch(delta_kernel<Unit>, {.grid = grid, .block = kBlock, .stream = stream},
         data<const Unit>(args.out), data<const Unit>(args.dout), data<float>(args.delta), num_q,
         num_heads, units, lanes);
}

bool is_aligned(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0; }

}  // namespace

void attention_delta(const AttentionDeltaArgs& args, cudaStream_t stream) {
  const Tensor& out = args.out;
  FARSPAN_CHECK(out.shape.num_dims() == 3 && out.dtype == args.dout.dtype &&
                    out.shape == args.dout.shape && args.delta.dtype == DType::kF32 &&
                    args.delta.shape == Shape({out.shape[1], out.shape[0]}),
                "delta of out {} and dout {} in {}", out.to_string(), args.dout.to_string(),
                args.delta.to_string());
  if (args.delta.numel() == 0) return;
  const int head_dim = static_cast<int>(out.shape[2]);
  const int per_unit = static_cast<int>(16 / size_of(out.dtype));
  const bool whole = head_dim % per_unit == 0 && is_aligned(out) && is_aligned(args.dout);
  with_compute_type(out.dtype, [&]<typename T>() {
    using Wide = std::conditional_t<std::is_same_v<T, float>, float4, uint4>;
    if (whole)
      run<Wide>(args, head_dim / per_unit, stream);
    else
      run<T>(args, head_dim, stream);
  });
}

}  // namespace farspan::cuda
