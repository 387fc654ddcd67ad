// The inner loops of the memory-bound operations, on raw pointers and one thread: one table of
// functions per instruction set. kernels/cpu/cpu_kernels.cpp splits the work over threads and calls
// them.
//
//   const RowOps& ops = row_ops(CpuIsa::kAvx512);
//   ops.f32.add(a, b, out, n);
//
// The functions are compiled from rows.inl once per instruction set. This header is read by those
// translation units, so it names plain types only: an inline function of the standard library,
// compiled with AVX-512 and picked by the linker for everybody, would crash an older processor.
// bf16 is std::uint16_t here. A result depends on the table, never on how the work was split.
#pragma once

#include <cstdint>

namespace farspan::cpu {

// Scalars of one AdamW step, in the form in which the loop uses them.
struct AdamWScalars {
  float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay;                // 1 - lr * weight_decay
  float step_size;            // lr / (1 - beta1^t)
  float inv_sqrt_bias2, eps;  // 1 / sqrt(1 - beta2^t)
};

// Loops over tensors of the compute dtype T: float, or std::uint16_t for bf16.
template <typename T>
struct TypedRowOps {
  void (*add)(const T* a, const T* b, T* out, std::int64_t n);
  // rows of c elements; writes rstd[row].
  void (*rmsnorm_forward)(const T* x, const T* weight, T* y, float* rstd, std::int64_t rows,
                          std::int64_t c, float eps);
  // dweight (c) f32 is added to, rows in order. dx may be dy.
  void (*rmsnorm_backward)(const T* x, const T* weight, const float* rstd, const T* dy, T* dx,
                           float* dweight, std::int64_t rows, std::int64_t c, bool accumulate_dx);
  // x (tokens, heads, 2 * half), cos and sin (tokens, half).
  void (*rope_apply)(T* x, const float* cos, const float* sin, std::int64_t tokens,
                     std::int64_t heads, std::int64_t half, bool inverse);
  void (*swiglu_forward)(const T* gate, const T* up, T* out, std::int64_t n);
  void (*swiglu_backward)(const T* gate, const T* up, const T* dout, T* dgate, T* dup,
                          std::int64_t n);
  void (*accumulate)(float* sum, const T* x, std::int64_t n);  // sum += x
  // One scored row of v logits: returns nll, and writes softmax - onehot unless dlogits is null.
  double (*cross_entropy)(const float* logits, T* dlogits, std::int64_t v, std::int64_t label);
  // working may be null (f32) or the bf16 copy.
  void (*adamw)(float* master, float* m, float* v, const float* grad, T* working, std::int64_t n,
                const AdamWScalars& s);
};

struct RowOps {
  TypedRowOps<float> f32;
  TypedRowOps<std::uint16_t> bf16;
  void (*narrow)(const float* src, std::uint16_t* dst, std::int64_t n);  // nearest even
  void (*widen)(const std::uint16_t* src, float* dst, std::int64_t n);
  double (*sum_squares)(const float* x, std::int64_t n);
  // cos and sin of a sum of two angles, times scale, rounded to f32 once.
  void (*add_angles)(const double* cos_a, const double* sin_a, const double* cos_b,
                     const double* sin_b, double scale, float* cos_out, float* sin_out,
                     std::int64_t n);
};

const RowOps& row_ops_portable();  // SSE2, the baseline of x86-64
const RowOps& row_ops_avx2();
const RowOps& row_ops_avx512();

}  // namespace farspan::cpu
