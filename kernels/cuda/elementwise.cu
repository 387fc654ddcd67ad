// Sums of tensors and SwiGLU.
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/elementwise.h"

namespace farspan::cuda {
namespace {

template <int N>
struct Two {
  Floats<N> a, b;
};

template <int N>
struct Three {
  Floats<N> a, b, c;
};

template <typename T>
struct Add {
  const T *a, *b;
  T* out;
  template <int N>
  __device__ __forceinline__ Two<N> load(std::int64_t i) const {
    return {load_floats<N>(a + i), load_floats<N>(b + i)};
  }
  template <int N>
  __device__ __forceinline__ void store(std::int64_t i, const Two<N>& in) const {
    Floats<N> sum;
#pragma unroll
    for (int j = 0; j < N; ++j) sum.at[j] = in.a.at[j] + in.b.at[j];
    store_floats(out + i, sum);
  }
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T>
struct SwiGluForward {
  const T *gate, *up;
  T* out;
  template <int N>
  __device__ __forceinline__ Two<N> load(std::int64_t i) const {
    return {load_floats<N>(gate + i), load_floats<N>(up + i)};
  }
  template <int N>
  __device__ __forceinline__ void store(std::int64_t i, const Two<N>& in) const {
    Floats<N> y;
#pragma unroll
    for (int j = 0; j < N; ++j) y.at[j] = in.a.at[j] * sigmoid(in.a.at[j]) * in.b.at[j];
    store_floats(out + i, y);
  }
};

template <typename T>
struct SwiGluBackward {
  const T *gate, *up, *dout;
  T *dgate, *dup;
  template <int N>
  __device__ __forceinline__ Three<N> load(std::int64_t i) const {
    return {load_floats<N>(gate + i), load_floats<N>(up + i), load_floats<N>(dout + i)};
  }
  template <int N>
  __device__ __forceinline__ void store(std::int64_t i, const Three<N>& in) const {
    Floats<N> to_gate, to_up;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = in.a.at[j], u = in.b.at[j], d = in.c.at[j];
      const float s = sigmoid(g);
      to_gate.at[j] = d * u * s * fmaf(g, 1.0f - s, 1.0f);
      to_up.at[j] = d * g * s;
    }
    store_floats(dgate + i, to_gate);
    store_floats(dup + i, to_up);
  }
};

}  // namespace

void add(const AddArgs& args, cudaStream_t stream) {
  with_compute_type(args.out.dtype, [&]<typename T>() {
    const Add<T> op{data<T>(args.a), data<T>(args.b), data<T>(args.out)};
    over_elements<kPackWidth<T>>(op, args.out.numel(), aligned_to(16, {op.a, op.b, op.out}),
                                 stream);
  });
}

void swiglu_forward(const SwiGluForwardArgs& args, cudaStream_t stream) {
  with_compute_type(args.out.dtype, [&]<typename T>() {
    const SwiGluForward<T> op{data<T>(args.gate), data<T>(args.up), data<T>(args.out)};
    over_elements<kPackWidth<T>>(op, args.out.numel(), aligned_to(16, {op.gate, op.up, op.out}),
                                 stream);
  });
}

void swiglu_backward(const SwiGluBackwardArgs& args, cudaStream_t stream) {
  with_compute_type(args.dout.dtype, [&]<typename T>() {
    const SwiGluBackward<T> op{data<T>(args.gate), data<T>(args.up), data<T>(args.dout),
                               data<T>(args.dgate), data<T>(args.dup)};
    over_elements<kPackWidth<T>>(
        op, args.dout.numel(), aligned_to(16, {op.gate, op.up, op.dout, op.dgate, op.dup}), stream);
  });
}

}  // namespace farspan::cuda
