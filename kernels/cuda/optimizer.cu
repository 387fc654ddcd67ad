#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/floats.cuh"
#include "kernels/cuda/optimizer.h"
#include "kernels/cuda/reduce.cuh"

namespace farspan::cuda {
namespace {

// ---- squared norm ---------------------------------------------------------------------------

// Elements of one block's sum, each thread's in packs of four.
constexpr int kNormWidth = 4;
constexpr int kNormPacks = 16;
constexpr std::int64_t kNormBlock = std::int64_t{kBlock} * kNormPacks * kNormWidth;
constexpr int kSumThreads = 1024;

template <bool kAligned>
__global__ void __launch_bounds__(kBlock)
    squares_kernel(const float* x, double* sums, std::int64_t n) {
  __shared__ double slots[kBlock / kWarp];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kNormBlock;
  const auto count = static_cast<int>(n - begin < kNormBlock ? n - begin : kNormBlock);
  double sum[kNormWidth] = {};
#pragma unroll 4
  for (int k = 0; k < kNormPacks; ++k) {
    const int col = (k * kBlock + static_cast<int>(threadIdx.x)) * kNormWidth;
    const bool whole = kAligned && col + kNormWidth <= count;
    const Floats<kNormWidth> pack =
        floats_of<float>(whole ? load_pack<float, kAligned>(x + begin, col, count)
                               : load_pack<float, false>(x + begin, col, count));
#pragma unroll
    for (int i = 0; i < kNormWidth; ++i) {
      const double wide = pack.at[i];
      sum[i] = fma(wide, wide, sum[i]);
    }
  }
  const double total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]), slots);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kSumThreads)
    add_sums_kernel(const double* sums, std::int64_t n, double* out, bool accumulate) {
  __shared__ double slots[kSumThreads / kWarp];
  double sum = 0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < n; i += kSumThreads) sum += sums[i];
  const double total = block_sum(sum, slots);
  if (threadIdx.x == 0) *out = accumulate ? *out + total : total;
}

// ---- the gate -------------------------------------------------------------------------------

struct Gate {
  const double *sum_squares, *loss_sum, *valid_count;
  double max_norm;
  float* grad_scale;
  double* grad_norm;
  std::int32_t* skip;
  std::int64_t *applied_steps, *skipped_steps;
};

__global__ void clip_kernel(Gate gate) {
  const double valid = *gate.valid_count, squares = *gate.sum_squares;
  const bool skip = !isfinite(squares) || !isfinite(*gate.loss_sum) || !(valid > 0);
  const double norm = sqrt(squares) / valid;
  const double clip = gate.max_norm > 0 && norm > gate.max_norm ? gate.max_norm / norm : 1.0;
  *gate.grad_norm = norm;
  *gate.grad_scale = skip ? 0.0f : static_cast<float>(clip / valid);
  *gate.skip = skip ? 1 : 0;
  *(skip ? gate.skipped_steps : gate.applied_steps) += 1;
}

// ---- AdamW ----------------------------------------------------------------------------------

struct AdamWState {
  float *master, *m, *v;
  const float* grad;
  bf16* working;  // or nullptr
};

struct AdamWGate {
  const float* grad_scale;
  const std::int32_t* skip;
  const std::int64_t* applied_steps;
};

struct AdamWConstants {
  double lr, beta1, beta2;
  float eps, weight_decay;
};

// Scalars of one step, in the form in which the loop uses them (as on the CPU).
struct AdamWScalars {
  float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay, step_size, inv_sqrt_bias2, eps;
};

__device__ __forceinline__ AdamWScalars scalars_of(const AdamWGate& gate, const AdamWConstants& k) {
  const auto step = static_cast<double>(*gate.applied_steps);
  return {.grad_scale = *gate.grad_scale,
          .beta1 = static_cast<float>(k.beta1),
          .one_minus_beta1 = static_cast<float>(1 - k.beta1),
          .beta2 = static_cast<float>(k.beta2),
          .one_minus_beta2 = static_cast<float>(1 - k.beta2),
          .decay = static_cast<float>(1 - k.lr * k.weight_decay),
          .step_size = static_cast<float>(k.lr / (1 - pow(k.beta1, step))),
          .inv_sqrt_bias2 = static_cast<float>(1 / sqrt(1 - pow(k.beta2, step))),
          .eps = k.eps};
}

template <int N>
__device__ __forceinline__ void adamw_step(const AdamWState& state, const AdamWScalars& s,
                                           std::int64_t i) {
  Floats<N> p = load_floats<N>(state.master + i), m = load_floats<N>(state.m + i);
  Floats<N> v = load_floats<N>(state.v + i);
  const Floats<N> grad = load_floats<N>(state.grad + i);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float g = grad.at[j] * s.grad_scale;
    m.at[j] = fmaf(g, s.one_minus_beta1, m.at[j] * s.beta1);
    v.at[j] = fmaf(g * g, s.one_minus_beta2, v.at[j] * s.beta2);
    const float denominator = fmaf(sqrtf(v.at[j]), s.inv_sqrt_bias2, s.eps);
    p.at[j] = fmaf(p.at[j], s.decay, -(m.at[j] * s.step_size / denominator));
  }
  store_floats(state.m + i, m);
  store_floats(state.v + i, v);
  store_floats(state.master + i, p);
  if (state.working != nullptr) store_floats(state.working + i, p);
}

// One thread of each block forms the scalars: powers in double are slow.
template <int N>
__global__ void __launch_bounds__(kBlock)
    adamw_kernel(AdamWState state, AdamWGate gate, AdamWConstants constants, std::int64_t n) {
  __shared__ AdamWScalars shared;
  if (*gate.skip != 0) return;
  if (threadIdx.x == 0) shared = scalars_of(gate, constants);
  __syncthreads();
  const AdamWScalars scalars = shared;
  const std::int64_t packs = n / N;
  for (std::int64_t p = first_index(); p < packs; p += stride())
    adamw_step<N>(state, scalars, p * N);
  if (const std::int64_t i = packs * N + first_index(); i < n) adamw_step<1>(state, scalars, i);
}

}  // namespace

void squared_norm(const SquaredNormArgs& args, Workspace& space, Stream& stream) {
  const std::int64_t n = args.x.numel(), blocks = ceil_div(n, kNormBlock);
  const auto* x = data<float>(args.x);
  auto* sums = reinterpret_cast<double*>(space.at_least(
      static_cast<std::size_t>(std::max<std::int64_t>(1, blocks)) * sizeof(double), stream));
  if (blocks > 0)
    with_flag(aligned_to(16, {x}), [&]<bool kAligned>() {
      launch(squares_kernel<kAligned>,
             {.grid = static_cast<unsigned>(blocks), .block = kBlock, .stream = native(stream)}, x,
             sums, n);
    });
  launch(add_sums_kernel, {.block = kSumThreads, .stream = native(stream)}, sums, blocks,
         data<double>(args.sum), args.mode == GradMode::kAccumulate);
}

void clip(const ClipArgs& args, Stream& stream) {
  launch(clip_kernel, {.stream = native(stream)},
         {.sum_squares = data<double>(args.sum_squares),
          .loss_sum = data<double>(args.loss_sum),
          .valid_count = data<double>(args.valid_count),
          .max_norm = args.max_norm,
          .grad_scale = data<float>(args.grad_scale),
          .grad_norm = data<double>(args.grad_norm),
          .skip = data<std::int32_t>(args.skip),
          .applied_steps = data<std::int64_t>(args.applied_steps),
          .skipped_steps = data<std::int64_t>(args.skipped_steps)});
}

void adamw(const AdamWArgs& args, Stream& stream) {
  const std::int64_t n = args.master.numel();
  if (n == 0) return;
  const AdamWState state{data<float>(args.master), data<float>(args.m), data<float>(args.v),
                         data<float>(args.grad),
                         args.working.defined() ? data<bf16>(args.working) : nullptr};
  const AdamWGate gate{data<float>(args.grad_scale), data<std::int32_t>(args.skip),
                       data<std::int64_t>(args.applied_steps)};
  const AdamWConstants constants{args.lr, args.beta1, args.beta2, args.eps, args.weight_decay};
  constexpr int kWide = 4;
  if (aligned_to(16, {state.master, state.m, state.v, state.grad}) &&
      aligned_to(8, {state.working}))
    launch(adamw_kernel<kWide>, linear(ceil_div(n, kWide), native(stream)), state, gate, constants,
           n);
  else
    launch(adamw_kernel<1>, linear(n, native(stream)), state, gate, constants, n);
}

}  // namespace farspan::cuda
