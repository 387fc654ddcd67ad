#include "kernels/dry/dry_kernels.h"

#include <initializer_list>

#include "kernels/visible_pairs.h"

namespace farspan::dry {
namespace {

struct Once {
  std::initializer_list<Tensor> tensors;
};
struct Twice {
  std::initializer_list<Tensor> tensors;
};

double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& t : tensors)
    if (t.defined()) bytes += static_cast<double>(t.bytes());
  return bytes;
}

// One call that reads or writes `once` a single time and both reads and writes `twice`.
void count(WorkCounters& work, Once once, Twice twice = {}) {
  work.calls += 1;
  work.bytes += bytes_of(once.tensors) + 2 * bytes_of(twice.tensors);
}

double visible_score_pairs(std::span<const AttentionSlice> slices, const Tensor& q,
                           const Tensor& k) {
  double pairs = 0;
  for (const AttentionSlice& s : slices) pairs += visible_pairs(s, k.shape[1]);
  return pairs * static_cast<double>(q.shape[1]);
}

}  // namespace

void DryKernels::copy(const CopyArgs& a, Stream&) { count(work_, {{a.src, a.dst}}); }
void DryKernels::fill(const FillArgs& a, Stream&) { count(work_, {{a.dst}}); }
void DryKernels::add(const AddArgs& a, Stream&) { count(work_, {{a.a, a.b, a.out}}); }

void DryKernels::matmul(const MatmulArgs& a, Stream&) {
  see(a);
  const auto k = static_cast<double>(a.a.shape[a.trans_a ? 0 : 1]);
  work_.matmul_flops += 2.0 * static_cast<double>(a.out.numel()) * k;
  if (a.mode == GradMode::kAccumulate)
    count(work_, {{a.a, a.b}}, {{a.out}});
  else
    count(work_, {{a.a, a.b, a.out}});
}

void DryKernels::rmsnorm_forward(const RmsNormForwardArgs& a, Stream&) {
  count(work_, {{a.x, a.residual, a.sum, a.weight, a.y, a.rstd}});
}

void DryKernels::rmsnorm_backward(const RmsNormBackwardArgs& a, Stream&) {
  see(a);
  if (a.dx_mode == GradMode::kAccumulate)
    count(work_, {{a.x, a.weight, a.rstd, a.dy}}, {{a.dx, a.dweight}});
  else
    count(work_, {{a.x, a.weight, a.rstd, a.dy, a.dx}}, {{a.dweight}});
}

void DryKernels::rope_table(const RopeTableArgs& a, Stream&) {
  count(work_, {{a.positions, a.table_ids, a.inv_freq, a.cos, a.sin}});
}
void DryKernels::rope_apply(const RopeApplyArgs& a, Stream&) {
  count(work_, {{a.cos, a.sin}}, {{a.x}});
}
void DryKernels::swiglu_forward(const SwiGluForwardArgs& a, Stream&) {
  count(work_, {{a.gate, a.up, a.out}});
}
void DryKernels::swiglu_backward(const SwiGluBackwardArgs& a, Stream&) {
  count(work_, {{a.gate, a.up, a.dout, a.dgate, a.dup}});
}
void DryKernels::embedding_forward(const EmbeddingForwardArgs& a, Stream&) {
  count(work_, {{a.ids, a.out, a.out}});  // as many rows of the table as of out
}
void DryKernels::embedding_backward(const EmbeddingBackwardArgs& a, Stream&) {
  see(a);
  count(work_, {{a.ids, a.dout}});
  work_.bytes += 2.0 * static_cast<double>(a.dout.numel()) * sizeof(float);  // the rows touched
}
void DryKernels::cross_entropy(const CrossEntropyArgs& a, Stream&) {
  see(a);
  count(work_, {{a.logits, a.labels, a.dlogits, a.nll}}, {{a.loss_sum, a.valid_count}});
}
void DryKernels::squared_norm(const SquaredNormArgs& a, Stream&) {
  see(a);
  count(work_, {{a.x}}, {{a.sum}});
}
void DryKernels::clip(const ClipArgs& a, Stream&) {
  count(work_, {{a.sum_squares, a.loss_sum, a.valid_count, a.grad_scale, a.grad_norm, a.skip}},
        {{a.applied_steps, a.skipped_steps}});
}
void DryKernels::adamw(const AdamWArgs& a, Stream&) {
  count(work_, {{a.grad, a.working, a.grad_scale, a.skip, a.applied_steps}},
        {{a.master, a.m, a.v}});
}

void DryKernels::attention_forward(const AttentionForwardArgs& a, Stream&) {
  see(a);
  const auto d = static_cast<double>(a.q.shape[2]);
  work_.attention_forward_flops += 4 * d * visible_score_pairs(a.slices, a.q, a.k);
  count(work_, {{a.q, a.k, a.v}});
  const double state = bytes_of({a.acc, a.row_max, a.row_sum});
  work_.bytes += (a.first ? 0 : state) + (a.last ? bytes_of({a.out, a.lse}) : state);
}
void DryKernels::attention_delta(const AttentionDeltaArgs& a, Stream&) {
  count(work_, {{a.out, a.dout, a.delta}});
}
void DryKernels::attention_backward(const AttentionBackwardArgs& a, Stream&) {
  see(a);
  const auto d = static_cast<double>(a.q.shape[2]);
  work_.attention_backward_flops += 10 * d * visible_score_pairs(a.slices, a.q, a.k);
  count(work_, {{a.q, a.k, a.v, a.dout, a.lse, a.delta}}, {{a.dq, a.dk, a.dv}});
}

void DryKernels::copy_2d(const Copy2dArgs& a, Stream&) {
  const double writes = a.mode == GradMode::kAccumulate ? 2 : 1;
  const auto n = static_cast<double>(a.rows * a.cols);
  work_.calls += 1;
  work_.bytes += n * (static_cast<double>(size_of(a.src.dtype)) +
                      writes * static_cast<double>(size_of(a.dst.dtype)));
}
void DryKernels::exact_add(const ExactAddArgs& a, Stream&) {
  count(work_, {{a.src, a.ids}});
  work_.bytes += 4.0 * static_cast<double>(a.src.numel()) * sizeof(std::int64_t);
}
void DryKernels::exact_matmul(const ExactMatmulArgs& a, Stream&) {
  see(a);
  work_.matmul_flops += 2.0 * static_cast<double>(a.a.numel()) * static_cast<double>(a.b.shape[1]);
  count(work_, {{a.a, a.b}}, {{a.sum.high, a.sum.low}});
}
void DryKernels::exact_read(const ExactReadArgs& a, Stream&) {
  if (a.mode == GradMode::kAccumulate)
    count(work_, {{a.sum.high, a.sum.low}}, {{a.dst}});
  else
    count(work_, {{a.sum.high, a.sum.low, a.dst}});
}

}  // namespace farspan::dry
