#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/launch.cuh"

namespace farspan::cuda {
namespace {

// The bits of BFloat16 (core/dtype.h): a NaN keeps its upper half, where the hardware's conversion
// makes all NaNs one.
__device__ __forceinline__ bf16 rounded(float x) {
  if (!isnan(x)) return __float2bfloat16_rn(x);
  return __ushort_as_bfloat16(static_cast<unsigned short>((__float_as_uint(x) >> 16) | 0x40u));
}

__global__ void narrow_kernel(const float* src, bf16* dst, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) dst[i] = rounded(src[i]);
}

__global__ void widen_kernel(const bf16* src, float* dst, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) dst[i] = __bfloat162float(src[i]);
}

__device__ __forceinline__ void store(float* dst, float x) { *dst = x; }
__device__ __forceinline__ void store(bf16* dst, float x) { *dst = rounded(x); }

struct Rows2d {
  std::int64_t cols, src_stride, dst_stride, n;
};

// Elements of one size, whatever they are.
template <typename T>
__global__ void copy_rows_kernel(const T* src, T* dst, Rows2d r) {
  for (std::int64_t i = first_index(); i < r.n; i += stride()) {
    const std::int64_t row = i / r.cols, col = i % r.cols;
    dst[row * r.dst_stride + col] = src[row * r.src_stride + col];
  }
}

__global__ void add_integer_rows_kernel(const std::int64_t* src, std::int64_t* dst, Rows2d r) {
  for (std::int64_t i = first_index(); i < r.n; i += stride()) {
    const std::int64_t row = i / r.cols, col = i % r.cols;
    dst[row * r.dst_stride + col] += src[row * r.src_stride + col];
  }
}

template <typename From, typename To>
__global__ void convert_rows_kernel(const From* src, To* dst, bool accumulate, Rows2d r) {
  for (std::int64_t i = first_index(); i < r.n; i += stride()) {
    const std::int64_t row = i / r.cols, col = i % r.cols;
    To* const to = dst + row * r.dst_stride + col;
    const float x = to_float(src[row * r.src_stride + col]);
    store(to, accumulate ? to_float(*to) + x : x);
  }
}

template <typename T>
__global__ void fill_kernel(T* dst, T value, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) dst[i] = value;
}

template <typename T>
__global__ void add_kernel(const T* a, const T* b, T* out, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride())
    out[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T>
__global__ void swiglu_forward_kernel(const T* gate, const T* up, T* out, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    const float g = to_float(gate[i]);
    out[i] = from_float<T>(g * sigmoid(g) * to_float(up[i]));
  }
}

// Outputs may be the inputs: each element is read before it is written.
template <typename T>
__global__ void swiglu_backward_kernel(const T* gate, const T* up, const T* dout, T* dgate, T* dup,
                                       std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    const float g = to_float(gate[i]), u = to_float(up[i]), d = to_float(dout[i]);
    const float s = sigmoid(g);
    dgate[i] = from_float<T>(d * u * s * (1.0f + g * (1.0f - s)));
    dup[i] = from_float<T>(d * g * s);
  }
}

// Angles in double: exact to f32 at position 1,048,575.
__global__ void rope_table_kernel(const std::int32_t* positions, const double* inv_freq,
                                  float* cos_out, float* sin_out, double scale, std::int64_t half,
                                  std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    double s, c;
    sincos(static_cast<double>(positions[i / half]) * inv_freq[i % half], &s, &c);
    cos_out[i] = static_cast<float>(c * scale);
    sin_out[i] = static_cast<float>(s * scale);
  }
}

template <typename T>
__global__ void rope_apply_kernel(T* x, const float* cos_in, const float* sin_in, float sign,
                                  std::int64_t heads, std::int64_t half, std::int64_t n) {
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    const std::int64_t j = i % half, row = i / half;
    const std::int64_t angle = row / heads * half + j;
    T* const pair = x + row * 2 * half + j;
    const float c = cos_in[angle], s = sign * sin_in[angle];
    const float a = to_float(pair[0]), b = to_float(pair[half]);
    pair[0] = from_float<T>(a * c - b * s);
    pair[half] = from_float<T>(b * c + a * s);
  }
}

struct AdamWScalars {
  float lr, beta1, beta2, eps, weight_decay;
};

__global__ void adamw_kernel(float* master, float* m, float* v, const float* grad, bf16* working,
                             const float* grad_scale, const std::int32_t* skip,
                             const std::int64_t* applied_steps, AdamWScalars k, std::int64_t n) {
  if (*skip != 0) return;
  const float scale = *grad_scale;
  const double t = static_cast<double>(*applied_steps);
  const auto correction1 = static_cast<float>(1.0 - pow(static_cast<double>(k.beta1), t));
  const auto correction2 = static_cast<float>(1.0 - pow(static_cast<double>(k.beta2), t));
  for (std::int64_t i = first_index(); i < n; i += stride()) {
    const float g = grad[i] * scale;
    const float first = k.beta1 * m[i] + (1.0f - k.beta1) * g;
    const float second = k.beta2 * v[i] + (1.0f - k.beta2) * g * g;
    m[i] = first;
    v[i] = second;
    const float update = first / correction1 / (sqrtf(second / correction2) + k.eps);
    const float w = master[i] - k.lr * (update + k.weight_decay * master[i]);
    master[i] = w;
    if (working != nullptr) working[i] = __float2bfloat16_rn(w);
  }
}

template <typename T>
void launch_fill(const FillArgs& args, cudaStream_t stream, T value) {
  launch(fill_kernel<T>, linear(args.dst.numel(), stream), data<T>(args.dst), value,
         args.dst.numel());
}

}  // namespace

void copy(const CopyArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.src.numel();
  if (n == 0) return;
  if (args.src.dtype == args.dst.dtype) {
    FARSPAN_CUDA(
        cudaMemcpyAsync(args.dst.data, args.src.data, args.src.bytes(), cudaMemcpyDefault, stream));
    return;
  }
  if (args.dst.dtype == DType::kBF16) {
    FARSPAN_CHECK(args.src.dtype == DType::kF32, "copy of {} to bf16", name_of(args.src.dtype));
    launch(narrow_kernel, linear(n, stream), data<float>(args.src), data<bf16>(args.dst), n);
  } else {
    FARSPAN_CHECK(args.src.dtype == DType::kBF16 && args.dst.dtype == DType::kF32,
                  "copy of {} to {}", name_of(args.src.dtype), name_of(args.dst.dtype));
    launch(widen_kernel, linear(n, stream), data<bf16>(args.src), data<float>(args.dst), n);
  }
}

namespace {

template <typename T>
void launch_copy_rows(const Copy2dArgs& args, const Rows2d& shape, cudaStream_t stream) {
  launch(copy_rows_kernel<T>, linear(shape.n, stream), data<T>(args.src) + args.src_begin,
         data<T>(args.dst) + args.dst_begin, shape);
}

template <typename From, typename To>
void launch_convert_rows(const Copy2dArgs& args, const Rows2d& shape, cudaStream_t stream) {
  launch(convert_rows_kernel<From, To>, linear(shape.n, stream), data<From>(args.src) + args.src_begin,
         data<To>(args.dst) + args.dst_begin, args.mode == GradMode::kAccumulate, shape);
}

}  // namespace

void copy_2d(const Copy2dArgs& args, cudaStream_t stream) {
  const Rows2d shape{args.cols, args.src_stride, args.dst_stride, args.rows * args.cols};
  if (shape.n == 0) return;
  const bool narrow = args.src.dtype == DType::kBF16;
  if (args.mode == GradMode::kAccumulate && args.dst.dtype == DType::kI64)
    launch(add_integer_rows_kernel, linear(shape.n, stream),
           data<std::int64_t>(args.src) + args.src_begin,
           data<std::int64_t>(args.dst) + args.dst_begin, shape);
  else if (args.mode == GradMode::kAccumulate && narrow)
    launch_convert_rows<bf16, float>(args, shape, stream);
  else if (args.mode == GradMode::kAccumulate)
    launch_convert_rows<float, float>(args, shape, stream);
  else if (args.src.dtype != args.dst.dtype && narrow)
    launch_convert_rows<bf16, float>(args, shape, stream);
  else if (args.src.dtype != args.dst.dtype)
    launch_convert_rows<float, bf16>(args, shape, stream);
  else if (size_of(args.src.dtype) == 8)
    launch_copy_rows<std::uint64_t>(args, shape, stream);
  else if (size_of(args.src.dtype) == 4)
    launch_copy_rows<std::uint32_t>(args, shape, stream);
  else if (size_of(args.src.dtype) == 2)
    launch_copy_rows<std::uint16_t>(args, shape, stream);
  else
    launch_copy_rows<std::uint8_t>(args, shape, stream);
}

void fill(const FillArgs& args, cudaStream_t stream) {
  if (args.dst.numel() == 0) return;
  switch (args.dst.dtype) {
    case DType::kF32:
      launch_fill(args, stream, static_cast<float>(args.value));
      break;
    case DType::kBF16:
      launch_fill(args, stream,
                  static_cast<std::uint16_t>(BFloat16(static_cast<float>(args.value)).bits));
      break;
    case DType::kF64:
      launch_fill(args, stream, args.value);
      break;
    case DType::kI32:
      launch_fill(args, stream, static_cast<std::int32_t>(args.value));
      break;
    case DType::kI64:
      launch_fill(args, stream, static_cast<std::int64_t>(args.value));
      break;
    default:
      FARSPAN_CHECK(false, "fill of {}", name_of(args.dst.dtype));
  }
}

void add(const AddArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.out.numel();
  if (n == 0) return;
  with_compute_type(args.out.dtype, [&]<typename T>() {
    launch(add_kernel<T>, linear(n, stream), data<T>(args.a), data<T>(args.b), data<T>(args.out),
           n);
  });
}

void swiglu_forward(const SwiGluForwardArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.out.numel();
  if (n == 0) return;
  with_compute_type(args.out.dtype, [&]<typename T>() {
    launch(swiglu_forward_kernel<T>, linear(n, stream), data<T>(args.gate), data<T>(args.up),
           data<T>(args.out), n);
  });
}

void swiglu_backward(const SwiGluBackwardArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.dout.numel();
  if (n == 0) return;
  with_compute_type(args.dout.dtype, [&]<typename T>() {
    launch(swiglu_backward_kernel<T>, linear(n, stream), data<T>(args.gate), data<T>(args.up),
           data<T>(args.dout), data<T>(args.dgate), data<T>(args.dup), n);
  });
}

void rope_table(const RopeTableArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.cos.numel();
  if (n == 0) return;
  launch(rope_table_kernel, linear(n, stream), data<std::int32_t>(args.positions),
         data<double>(args.inv_freq), data<float>(args.cos), data<float>(args.sin),
         args.attention_scale, args.inv_freq.shape[0], n);
}

void rope_apply(const RopeApplyArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.x.numel() / 2;
  if (n == 0) return;
  with_compute_type(args.x.dtype, [&]<typename T>() {
    launch(rope_apply_kernel<T>, linear(n, stream), data<T>(args.x), data<float>(args.cos),
           data<float>(args.sin), args.inverse ? -1.0f : 1.0f, args.x.shape[1], args.x.shape[2] / 2,
           n);
  });
}

void adamw(const AdamWArgs& args, cudaStream_t stream) {
  const std::int64_t n = args.master.numel();
  if (n == 0) return;
  launch(adamw_kernel, linear(n, stream), data<float>(args.master), data<float>(args.m),
         data<float>(args.v), data<float>(args.grad),
         args.working.defined() ? data<bf16>(args.working) : nullptr, data<float>(args.grad_scale),
         data<std::int32_t>(args.skip), data<std::int64_t>(args.applied_steps),
         {args.lr, args.beta1, args.beta2, args.eps, args.weight_decay}, n);
}

}  // namespace farspan::cuda
