// Rotary tables and rotation (Su et al. 2021).
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/floats.cuh"

namespace farspan::cuda {
namespace {

// Angles in double: exact to f32 at position 1,048,575. table_ids: null, or which row of inv_freq.
__global__ void __launch_bounds__(kBlock)
    rope_table_kernel(const std::int32_t* positions, const std::int32_t* table_ids,
                      const double* inv_freq, float* cos_out, float* sin_out, double scale,
                      std::int64_t tokens, std::int64_t half) {
  for (std::int64_t t = first_row(); t < tokens; t += row_stride()) {
    const double* const omega = table_ids == nullptr ? inv_freq : inv_freq + table_ids[t] * half;
    for (std::int64_t j = first_col(); j < half; j += col_stride()) {
      double s, c;
      sincos(static_cast<double>(positions[t]) * omega[j], &s, &c);
      cos_out[t * half + j] = static_cast<float>(c * scale);
      sin_out[t * half + j] = static_cast<float>(s * scale);
    }
  }
}

struct RopeShape {
  std::int64_t tokens;
  unsigned heads, half;  // half: in elements
  float sign;
};

// N consecutive pairs of one head at a time; a token's pairs fit 32 bits (checked by the caller).
template <typename T, int N>
__global__ void __launch_bounds__(kBlock)
    rope_apply_kernel(T* x, const float* cos_in, const float* sin_in, RopeShape shape) {
  const unsigned per_head = shape.half / N, width = shape.heads * per_head;
  for (std::int64_t t = first_row(); t < shape.tokens; t += row_stride())
    for (auto item = static_cast<unsigned>(first_col()); item < width;
         item += static_cast<unsigned>(col_stride())) {
      const unsigned head = item / per_head, j = item % per_head * N;
      T* const low = x + (t * shape.heads + head) * 2 * shape.half + j;
      T* const high = low + shape.half;
      const Floats<N> c = load_floats<N>(cos_in + t * shape.half + j);
      const Floats<N> s = load_floats<N>(sin_in + t * shape.half + j);
      Floats<N> a = load_floats<N>(low), b = load_floats<N>(high);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float sine = shape.sign * s.at[i];
        const float turned = fmaf(a.at[i], c.at[i], -(b.at[i] * sine));
        b.at[i] = fmaf(b.at[i], c.at[i], a.at[i] * sine);
        a.at[i] = turned;
      }
      store_floats(low, a);
      store_floats(high, b);
    }
}

template <typename T, int N>
void launch_apply(const RopeApplyArgs& args, const RopeShape& shape, cudaStream_t stream) {
  launch(rope_apply_kernel<T, N>, by_rows(shape.tokens, shape.heads * (shape.half / N), stream),
         data<T>(args.x), data<float>(args.cos), data<float>(args.sin), shape);
}

}  // namespace

void rope_table(const RopeTableArgs& args, cudaStream_t stream) {
  const std::int64_t tokens = args.positions.numel(), half = args.cos.shape[1];
  if (tokens == 0 || half == 0) return;
  const std::int32_t* const table_ids =
      args.table_ids.defined() ? data<std::int32_t>(args.table_ids) : nullptr;
  launch(rope_table_kernel, by_rows(tokens, half, stream), data<std::int32_t>(args.positions),
         table_ids, data<double>(args.inv_freq), data<float>(args.cos), data<float>(args.sin),
         args.attention_scale, tokens, half);
}

void rope_apply(const RopeApplyArgs& args, cudaStream_t stream) {
  if (args.x.numel() == 0) return;
  FARSPAN_CHECK(args.x.shape[1] * args.x.shape[2] < std::int64_t{1} << 30, "rope_apply of {}",
                args.x.to_string());
  const RopeShape shape{.tokens = args.x.shape[0],
                        .heads = static_cast<unsigned>(args.x.shape[1]),
                        .half = static_cast<unsigned>(args.x.shape[2] / 2),
                        .sign = args.inverse ? -1.0f : 1.0f};
  with_compute_type(args.x.dtype, [&]<typename T>() {
    constexpr int kWide = kPackWidth<T>;
    if (shape.half % kWide == 0 && aligned_to(16, {args.x.data, args.cos.data, args.sin.data}))
      launch_apply<T, kWide>(args, shape, stream);
    else
      launch_apply<T, 1>(args, shape, stream);
  });
}

}  // namespace farspan::cuda
