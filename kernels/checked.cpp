// The rules of args.h, one function per operation, in the same order.
#include "kernels/checked.h"

#include <algorithm>
#include <utility>

#include "kernels/contract.h"
#include "kernels/visible_pairs.h"

namespace farspan {
namespace {

class Checked final : public Kernels {
 public:
  Checked(std::unique_ptr<Kernels> inner, DeviceId device)
      : inner_(std::move(inner)), device_(device) {}

  void copy(const CopyArgs&, Stream&) override;
  void fill(const FillArgs&, Stream&) override;
  void add(const AddArgs&, Stream&) override;
  void matmul(const MatmulArgs&, Stream&) override;
  void rmsnorm_forward(const RmsNormForwardArgs&, Stream&) override;
  void rmsnorm_backward(const RmsNormBackwardArgs&, Stream&) override;
  void rope_table(const RopeTableArgs&, Stream&) override;
  void rope_apply(const RopeApplyArgs&, Stream&) override;
  void swiglu_forward(const SwiGluForwardArgs&, Stream&) override;
  void swiglu_backward(const SwiGluBackwardArgs&, Stream&) override;
  void embedding_forward(const EmbeddingForwardArgs&, Stream&) override;
  void embedding_backward(const EmbeddingBackwardArgs&, Stream&) override;
  void cross_entropy(const CrossEntropyArgs&, Stream&) override;
  void squared_norm(const SquaredNormArgs&, Stream&) override;
  void clip(const ClipArgs&, Stream&) override;
  void adamw(const AdamWArgs&, Stream&) override;
  void attention_forward(const AttentionForwardArgs&, Stream&) override;
  void attention_delta(const AttentionDeltaArgs&, Stream&) override;
  void attention_backward(const AttentionBackwardArgs&, Stream&) override;
  void copy_2d(const Copy2dArgs&, Stream&) override;
  void exact_add(const ExactAddArgs&, Stream&) override;
  void exact_matmul(const ExactMatmulArgs&, Stream&) override;
  void exact_read(const ExactReadArgs&, Stream&) override;

 private:
  Contract contract(std::string_view op) const { return {op, device_}; }

  std::unique_ptr<Kernels> inner_;
  DeviceId device_;
};

bool is_float(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

void Checked::copy(const CopyArgs& args, Stream& stream) {
  const Contract rule = contract("copy");
  rule.present(args.src, "src");
  rule.present(args.dst, "dst");
  rule.require(args.src.numel() == args.dst.numel(), "src and dst differ in size");
  rule.require(
      args.src.dtype == args.dst.dtype || (is_float(args.src.dtype) && is_float(args.dst.dtype)),
      "dtypes differ and are not f32 and bf16");
  rule.apart(args.dst, "dst", {{args.src, "src"}});
  inner_->copy(args, stream);
}

void Checked::fill(const FillArgs& args, Stream& stream) {
  const Contract rule = contract("fill");
  rule.present(args.dst, "dst");
  const DType dtype = args.dst.dtype;
  rule.require(
      is_float(dtype) || dtype == DType::kF64 || dtype == DType::kI32 || dtype == DType::kI64,
      "dst is neither f32, bf16, f64, i32 nor i64");
  inner_->fill(args, stream);
}

void Checked::add(const AddArgs& args, Stream& stream) {
  const Contract rule = contract("add");
  const DType dtype = rule.compute(args.out, "out");
  rule.shaped(args.out, "out", dtype, args.out.shape);
  rule.shaped(args.a, "a", dtype, args.out.shape);
  rule.shaped(args.b, "b", dtype, args.out.shape);
  rule.same_or_apart(args.out, "out", {{args.a, "a"}, {args.b, "b"}});
  inner_->add(args, stream);
}

void check_blocks(const Contract& rule, std::span<const std::int64_t> borders, std::int64_t rows) {
  rule.require(!borders.empty() && borders.front() == 0 && borders.back() == rows &&
                   std::is_sorted(borders.begin(), borders.end()),
               "row_blocks do not ascend from 0 to the number of rows");
}

void Checked::matmul(const MatmulArgs& args, Stream& stream) {
  const Contract rule = contract("matmul");
  rule.dims(args.a, "a", 2);
  rule.dims(args.b, "b", 2);
  rule.dims(args.out, "out", 2);
  const DType dtype = rule.compute(args.a, "a");
  const std::int64_t m = args.a.shape[args.trans_a ? 1 : 0];
  const std::int64_t k = args.a.shape[args.trans_a ? 0 : 1];
  const std::int64_t n = args.b.shape[args.trans_b ? 0 : 1];
  rule.present(args.a, "a");
  rule.shaped(args.b, "b", dtype, args.trans_b ? Shape{n, k} : Shape{k, n});
  rule.require(args.out.dtype == dtype || args.out.dtype == DType::kF32,
               "out is neither f32 nor of the inputs' dtype");
  rule.shaped(args.out, "out", args.out.dtype, {m, n});
  rule.require(args.mode == GradMode::kOverwrite || args.out.dtype == DType::kF32,
               "accumulation needs an f32 out");
  rule.apart(args.out, "out", {{args.a, "a"}, {args.b, "b"}});
  if (!args.row_blocks.empty()) {
    check_blocks(rule, args.row_blocks, m);
    rule.require(!args.trans_a || args.row_blocks.size() <= 2,
                 "a transposed a has one block of rows");
  }
  inner_->matmul(args, stream);
}

void Checked::rmsnorm_forward(const RmsNormForwardArgs& args, Stream& stream) {
  const Contract rule = contract("rmsnorm_forward");
  rule.dims(args.x, "x", 2);
  const DType dtype = rule.compute(args.x, "x");
  const std::int64_t t = args.x.shape[0];
  const std::int64_t c = args.x.shape[1];
  rule.present(args.x, "x");
  rule.shaped(args.weight, "weight", dtype, {c});
  rule.shaped(args.y, "y", dtype, {t, c});
  rule.shaped(args.rstd, "rstd", DType::kF32, {t});
  rule.apart(args.y, "y", {{args.x, "x"}, {args.weight, "weight"}});
  rule.apart(args.rstd, "rstd", {{args.x, "x"}, {args.weight, "weight"}, {args.y, "y"}});
  inner_->rmsnorm_forward(args, stream);
}

void Checked::rmsnorm_backward(const RmsNormBackwardArgs& args, Stream& stream) {
  const Contract rule = contract("rmsnorm_backward");
  rule.dims(args.x, "x", 2);
  const DType dtype = rule.compute(args.x, "x");
  const std::int64_t t = args.x.shape[0];
  const std::int64_t c = args.x.shape[1];
  rule.present(args.x, "x");
  rule.shaped(args.weight, "weight", dtype, {c});
  rule.shaped(args.rstd, "rstd", DType::kF32, {t});
  rule.shaped(args.dy, "dy", dtype, {t, c});
  rule.shaped(args.dx, "dx", dtype, {t, c});
  rule.shaped(args.dweight, "dweight", DType::kF32, {c});
  rule.same_or_apart(args.dx, "dx", {{args.dy, "dy"}});
  rule.apart(args.dx, "dx", {{args.x, "x"}, {args.weight, "weight"}, {args.rstd, "rstd"}});
  rule.apart(args.dweight, "dweight",
             {{args.x, "x"},
              {args.weight, "weight"},
              {args.rstd, "rstd"},
              {args.dy, "dy"},
              {args.dx, "dx"}});
  inner_->rmsnorm_backward(args, stream);
}

void Checked::rope_table(const RopeTableArgs& args, Stream& stream) {
  const Contract rule = contract("rope_table");
  rule.dims(args.positions, "positions", 1);
  rule.dims(args.inv_freq, "inv_freq", 1);
  const std::int64_t t = args.positions.shape[0];
  const std::int64_t half = args.inv_freq.shape[0];
  rule.shaped(args.positions, "positions", DType::kI32, {t});
  rule.shaped(args.inv_freq, "inv_freq", DType::kF64, {half});
  rule.shaped(args.cos, "cos", DType::kF32, {t, half});
  rule.shaped(args.sin, "sin", DType::kF32, {t, half});
  rule.apart(args.cos, "cos", {{args.positions, "positions"}, {args.inv_freq, "inv_freq"}});
  rule.apart(args.sin, "sin",
             {{args.positions, "positions"}, {args.inv_freq, "inv_freq"}, {args.cos, "cos"}});
  inner_->rope_table(args, stream);
}

void Checked::rope_apply(const RopeApplyArgs& args, Stream& stream) {
  const Contract rule = contract("rope_apply");
  rule.dims(args.x, "x", 3);
  rule.compute(args.x, "x");
  rule.present(args.x, "x");
  rule.require(args.x.shape[2] % 2 == 0, "the head dimension of x is odd");
  const Shape table{args.x.shape[0], args.x.shape[2] / 2};
  rule.shaped(args.cos, "cos", DType::kF32, table);
  rule.shaped(args.sin, "sin", DType::kF32, table);
  rule.apart(args.x, "x", {{args.cos, "cos"}, {args.sin, "sin"}});
  inner_->rope_apply(args, stream);
}

void Checked::swiglu_forward(const SwiGluForwardArgs& args, Stream& stream) {
  const Contract rule = contract("swiglu_forward");
  rule.dims(args.gate, "gate", 2);
  const DType dtype = rule.compute(args.gate, "gate");
  rule.present(args.gate, "gate");
  rule.shaped(args.up, "up", dtype, args.gate.shape);
  rule.shaped(args.out, "out", dtype, args.gate.shape);
  rule.apart(args.out, "out", {{args.gate, "gate"}, {args.up, "up"}});
  inner_->swiglu_forward(args, stream);
}

void Checked::swiglu_backward(const SwiGluBackwardArgs& args, Stream& stream) {
  const Contract rule = contract("swiglu_backward");
  rule.dims(args.gate, "gate", 2);
  const DType dtype = rule.compute(args.gate, "gate");
  rule.present(args.gate, "gate");
  rule.shaped(args.up, "up", dtype, args.gate.shape);
  rule.shaped(args.dout, "dout", dtype, args.gate.shape);
  rule.shaped(args.dgate, "dgate", dtype, args.gate.shape);
  rule.shaped(args.dup, "dup", dtype, args.gate.shape);
  const std::initializer_list<NamedTensor> inputs{
      {args.gate, "gate"}, {args.up, "up"}, {args.dout, "dout"}};
  rule.same_or_apart(args.dgate, "dgate", inputs);
  rule.same_or_apart(args.dup, "dup", inputs);
  rule.apart(args.dgate, "dgate", {{args.dup, "dup"}});
  inner_->swiglu_backward(args, stream);
}

void Checked::embedding_forward(const EmbeddingForwardArgs& args, Stream& stream) {
  const Contract rule = contract("embedding_forward");
  rule.dims(args.ids, "ids", 1);
  rule.dims(args.table, "table", 2);
  const DType dtype = rule.compute(args.table, "table");
  rule.shaped(args.ids, "ids", DType::kI32, args.ids.shape);
  rule.present(args.table, "table");
  rule.shaped(args.out, "out", dtype, {args.ids.shape[0], args.table.shape[1]});
  rule.apart(args.out, "out", {{args.ids, "ids"}, {args.table, "table"}});
  inner_->embedding_forward(args, stream);
}

void Checked::embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) {
  const Contract rule = contract("embedding_backward");
  rule.dims(args.ids, "ids", 1);
  rule.dims(args.dtable, "dtable", 2);
  const DType dtype = rule.compute(args.dout, "dout");
  rule.shaped(args.ids, "ids", DType::kI32, args.ids.shape);
  rule.shaped(args.dtable, "dtable", DType::kF32, args.dtable.shape);
  rule.shaped(args.dout, "dout", dtype, {args.ids.shape[0], args.dtable.shape[1]});
  rule.apart(args.dtable, "dtable", {{args.ids, "ids"}, {args.dout, "dout"}});
  inner_->embedding_backward(args, stream);
}

void Checked::cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  const Contract rule = contract("cross_entropy");
  rule.dims(args.logits, "logits", 2);
  const std::int64_t n = args.logits.shape[0];
  rule.shaped(args.logits, "logits", DType::kF32, args.logits.shape);
  rule.shaped(args.labels, "labels", DType::kI32, {n});
  rule.shaped(args.loss_sum, "loss_sum", DType::kF64, {1});
  rule.shaped(args.valid_count, "valid_count", DType::kF64, {1});
  rule.apart(args.loss_sum, "loss_sum",
             {{args.logits, "logits"}, {args.valid_count, "valid_count"}});
  if (args.dlogits.defined()) {
    rule.shaped(args.dlogits, "dlogits", rule.compute(args.dlogits, "dlogits"), args.logits.shape);
    rule.same_or_apart(args.dlogits, "dlogits", {{args.logits, "logits"}});
    rule.apart(args.dlogits, "dlogits",
               {{args.labels, "labels"}, {args.loss_sum, "loss_sum"}, {args.nll, "nll"}});
  }
  if (args.nll.defined()) {
    rule.shaped(args.nll, "nll", DType::kF32, {n});
    rule.apart(args.nll, "nll", {{args.logits, "logits"}, {args.labels, "labels"}});
  }
  inner_->cross_entropy(args, stream);
}

void Checked::squared_norm(const SquaredNormArgs& args, Stream& stream) {
  const Contract rule = contract("squared_norm");
  rule.shaped(args.x, "x", DType::kF32, args.x.shape);
  rule.shaped(args.sum, "sum", DType::kF64, {1});
  rule.apart(args.sum, "sum", {{args.x, "x"}});
  inner_->squared_norm(args, stream);
}

void Checked::clip(const ClipArgs& args, Stream& stream) {
  const Contract rule = contract("clip");
  rule.shaped(args.sum_squares, "sum_squares", DType::kF64, {1});
  rule.shaped(args.loss_sum, "loss_sum", DType::kF64, {1});
  rule.shaped(args.valid_count, "valid_count", DType::kF64, {1});
  rule.shaped(args.grad_scale, "grad_scale", DType::kF32, {1});
  rule.shaped(args.grad_norm, "grad_norm", DType::kF64, {1});
  rule.shaped(args.skip, "skip", DType::kI32, {1});
  rule.shaped(args.applied_steps, "applied_steps", DType::kI64, {1});
  rule.shaped(args.skipped_steps, "skipped_steps", DType::kI64, {1});
  rule.require(args.max_norm >= 0, "max_norm is negative");
  rule.apart(args.grad_norm, "grad_norm",
             {{args.sum_squares, "sum_squares"},
              {args.loss_sum, "loss_sum"},
              {args.valid_count, "valid_count"}});
  rule.apart(args.applied_steps, "applied_steps", {{args.skipped_steps, "skipped_steps"}});
  inner_->clip(args, stream);
}

void Checked::adamw(const AdamWArgs& args, Stream& stream) {
  const Contract rule = contract("adamw");
  const Shape shape = args.master.shape;  // any, as long as all agree
  rule.shaped(args.master, "master", DType::kF32, shape);
  rule.shaped(args.m, "m", DType::kF32, shape);
  rule.shaped(args.v, "v", DType::kF32, shape);
  rule.shaped(args.grad, "grad", DType::kF32, shape);
  rule.apart(args.master, "master", {{args.m, "m"}, {args.v, "v"}, {args.grad, "grad"}});
  rule.apart(args.m, "m", {{args.v, "v"}, {args.grad, "grad"}});
  rule.apart(args.v, "v", {{args.grad, "grad"}});
  if (args.working.defined()) {
    rule.shaped(args.working, "working", DType::kBF16, shape);
    rule.apart(args.working, "working",
               {{args.master, "master"}, {args.m, "m"}, {args.v, "v"}, {args.grad, "grad"}});
  }
  rule.shaped(args.grad_scale, "grad_scale", DType::kF32, {1});
  rule.shaped(args.skip, "skip", DType::kI32, {1});
  rule.shaped(args.applied_steps, "applied_steps", DType::kI64, {1});
  inner_->adamw(args, stream);
}

// ---- attention ------------------------------------------------------------------------------

// Slopes (Hq) and decay (D / 2). xPos shrinks what is far by products that grow what lies ahead:
// those would overflow, so every visible key must lie at its query or before.
void check_bias(const Contract& rule, const PositionBias& bias, const Tensor& q,
                std::span<const AttentionSlice> slices) {
  if (!bias.any()) return;
  rule.require(bias.position_stride >= 1, "the position stride is below 1");
  if (bias.slopes.defined()) rule.shaped(bias.slopes, "slopes", DType::kF32, {q.shape[1]});
  if (!bias.decay.defined()) return;
  rule.require(q.shape[2] % 2 == 0, "xPos needs an even head dimension");
  rule.shaped(bias.decay, "decay", DType::kF32, {q.shape[2] / 2});
  for (const AttentionSlice& s : slices) {
    if (visible_pairs(s) == 0) continue;
    const std::int64_t shortest = shortest_distance(s, bias.position_stride);
    if (shortest < 0)
      rule.fail(
          fmt::format("slice q [{}, +{}) k [{}, +{}) shows keys {} positions after a query, where "
                      "the decay of xPos would grow without bound; use a causal mask",
                      s.q_begin, s.q_len, s.k_begin, s.k_len, -shortest));
  }
}

void check_slices(const Contract& rule, std::span<const AttentionSlice> slices, const Tensor& q,
                  const Tensor& k, const PositionBias& bias) {
  const std::int64_t tq = q.shape[0], tk = k.shape[0], heads = k.shape[1];
  for (const AttentionSlice& s : slices) {
    const bool inside = s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + s.q_len <= tq &&
                        s.k_begin >= 0 && s.k_len >= 0 && s.k_begin + s.k_len <= tk;
    const bool windowed = s.kind == MaskKind::kBand || s.kind == MaskKind::kInverseCausal;
    if (!inside || (windowed && s.window <= 0))
      rule.fail(
          fmt::format("slice q [{}, +{}) k [{}, +{}) window {} does not fit {} queries and {} keys",
                      s.q_begin, s.q_len, s.k_begin, s.k_len, s.window, tq, tk));
    const HeadRange& range = s.kv_heads;
    if (range.begin < 0 || range.begin >= heads || range.end <= range.begin)
      rule.fail(fmt::format("slice q [{}, +{}) k [{}, +{}) is for KV heads [{}, {}) of {}",
                            s.q_begin, s.q_len, s.k_begin, s.k_len, range.begin, range.end, heads));
  }
  check_bias(rule, bias, q, slices);
}

// q (Tq, Hq, D), k and v (Tk, Hkv, D) of one compute dtype, which is returned.
DType check_qkv(const Contract& rule, const Tensor& q, const Tensor& k, const Tensor& v) {
  rule.dims(q, "q", 3);
  rule.dims(k, "k", 3);
  const DType dtype = rule.compute(q, "q");
  const std::int64_t kv_heads = k.shape[1];
  rule.present(q, "q");
  rule.shaped(k, "k", dtype, {k.shape[0], kv_heads, q.shape[2]});
  rule.shaped(v, "v", dtype, k.shape);
  rule.require(kv_heads > 0 && q.shape[1] % kv_heads == 0,
               "the KV heads do not divide the query heads");
  return dtype;
}

void Checked::attention_forward(const AttentionForwardArgs& args, Stream& stream) {
  const Contract rule = contract("attention_forward");
  const DType dtype = check_qkv(rule, args.q, args.k, args.v);
  const Shape rows{args.q.shape[1], args.q.shape[0]};
  rule.shaped(args.acc, "acc", DType::kF32, args.q.shape);
  rule.shaped(args.row_max, "row_max", DType::kF32, rows);
  rule.shaped(args.row_sum, "row_sum", DType::kF32, rows);
  const std::initializer_list<NamedTensor> inputs{{args.q, "q"}, {args.k, "k"}, {args.v, "v"}};
  rule.apart(args.acc, "acc", inputs);
  rule.apart(args.acc, "acc", {{args.row_max, "row_max"}, {args.row_sum, "row_sum"}});
  rule.apart(args.row_max, "row_max", {{args.row_sum, "row_sum"}});
  if (args.last) {
    rule.shaped(args.out, "out", dtype, args.q.shape);
    rule.shaped(args.lse, "lse", DType::kF32, rows);
    rule.apart(args.out, "out", inputs);
    rule.apart(args.out, "out", {{args.acc, "acc"}, {args.lse, "lse"}});
    rule.apart(args.lse, "lse", inputs);
    rule.apart(args.lse, "lse", {{args.acc, "acc"}});
  }
  check_slices(rule, args.slices, args.q, args.k, args.bias);
  inner_->attention_forward(args, stream);
}

void Checked::attention_delta(const AttentionDeltaArgs& args, Stream& stream) {
  const Contract rule = contract("attention_delta");
  rule.dims(args.out, "out", 3);
  rule.present(args.out, "out");
  rule.shaped(args.dout, "dout", rule.compute(args.out, "out"), args.out.shape);
  rule.shaped(args.delta, "delta", DType::kF32, {args.out.shape[1], args.out.shape[0]});
  rule.apart(args.delta, "delta", {{args.out, "out"}, {args.dout, "dout"}});
  inner_->attention_delta(args, stream);
}

void Checked::attention_backward(const AttentionBackwardArgs& args, Stream& stream) {
  const Contract rule = contract("attention_backward");
  const DType dtype = check_qkv(rule, args.q, args.k, args.v);
  const Shape rows{args.q.shape[1], args.q.shape[0]};
  rule.shaped(args.dout, "dout", dtype, args.q.shape);
  rule.shaped(args.lse, "lse", DType::kF32, rows);
  rule.shaped(args.delta, "delta", DType::kF32, rows);
  rule.shaped(args.dq, "dq", DType::kF32, args.q.shape);
  rule.shaped(args.dk, "dk", DType::kF32, args.k.shape);
  rule.shaped(args.dv, "dv", DType::kF32, args.k.shape);
  const std::initializer_list<NamedTensor> inputs{{args.q, "q"},     {args.k, "k"},
                                                  {args.v, "v"},     {args.dout, "dout"},
                                                  {args.lse, "lse"}, {args.delta, "delta"}};
  rule.apart(args.dq, "dq", inputs);
  rule.apart(args.dk, "dk", inputs);
  rule.apart(args.dv, "dv", inputs);
  rule.apart(args.dq, "dq", {{args.dk, "dk"}, {args.dv, "dv"}});
  rule.apart(args.dk, "dk", {{args.dv, "dv"}});
  check_slices(rule, args.slices, args.q, args.k, args.bias);
  inner_->attention_backward(args, stream);
}

// ---- copies between layouts, exact sums -----------------------------------------------------

// The elements from the first to the last that a call touches, as a flat tensor.
Tensor touched(const Contract& rule, const Tensor& t, std::string_view name, std::int64_t begin,
               std::int64_t stride, std::int64_t rows, std::int64_t cols) {
  if (rows == 0 || cols == 0) return {};
  const std::int64_t end = begin + (rows - 1) * stride + cols;
  if (begin < 0 || stride < 0 || end > t.numel())
    rule.fail(fmt::format("{} rows of {} at {} with stride {} do not fit {} {}", rows, cols, begin,
                          stride, name, t.to_string()));
  return t.view({t.numel()}).rows(begin, end - begin);
}

void Checked::copy_2d(const Copy2dArgs& args, Stream& stream) {
  const Contract rule = contract("copy_2d");
  rule.present(args.src, "src");
  rule.present(args.dst, "dst");
  rule.require(args.rows >= 0 && args.cols >= 0, "negative rows or cols");
  rule.require(
      args.src.dtype == args.dst.dtype || (is_float(args.src.dtype) && is_float(args.dst.dtype)),
      "dtypes differ and are not f32 and bf16");
  rule.require(args.mode == GradMode::kOverwrite || args.dst.dtype == DType::kF32 ||
                   args.dst.dtype == DType::kI64,
               "accumulation needs a dst of f32 or i64");
  rule.require(args.rows <= 1 || args.dst_stride >= args.cols, "rows of dst overlap");
  const Tensor from =
      touched(rule, args.src, "src", args.src_begin, args.src_stride, args.rows, args.cols);
  const Tensor to =
      touched(rule, args.dst, "dst", args.dst_begin, args.dst_stride, args.rows, args.cols);
  rule.apart(to, "dst", {{from, "src"}});
  inner_->copy_2d(args, stream);
}

void check_sum(const Contract& rule, const ExactSum& sum) {
  rule.shaped(sum.high, "high", DType::kI64, sum.high.shape);
  rule.shaped(sum.low, "low", DType::kI64, sum.high.shape);
  rule.shaped(sum.invalid, "invalid", DType::kI64, {1});
  rule.apart(sum.high, "high", {{sum.low, "low"}, {sum.invalid, "invalid"}});
  rule.apart(sum.low, "low", {{sum.invalid, "invalid"}});
}

void Checked::exact_add(const ExactAddArgs& args, Stream& stream) {
  const Contract rule = contract("exact_add");
  rule.present(args.src, "src");
  rule.require(is_float(args.src.dtype) || args.src.dtype == DType::kF64,
               "src is neither f32, bf16 nor f64");
  check_sum(rule, args.sum);
  if (args.ids.defined()) {
    rule.dims(args.src, "src", 2);
    rule.shaped(args.ids, "ids", DType::kI32, {args.src.shape[0]});
    rule.require(args.src.shape[1] == 0 || args.sum.high.numel() % args.src.shape[1] == 0,
                 "the sum is not made of rows of src");
  } else {
    rule.require(args.src.numel() == args.sum.high.numel(), "src and sum differ in size");
  }
  for (const Tensor& half : {args.sum.high, args.sum.low, args.sum.invalid})
    rule.apart(half, "the sum", {{args.src, "src"}, {args.ids, "ids"}});
  inner_->exact_add(args, stream);
}

void Checked::exact_matmul(const ExactMatmulArgs& args, Stream& stream) {
  const Contract rule = contract("exact_matmul");
  rule.dims(args.a, "a", 2);
  rule.dims(args.b, "b", 2);
  const DType dtype = rule.compute(args.a, "a");
  rule.present(args.a, "a");
  rule.shaped(args.b, "b", dtype, {args.a.shape[0], args.b.shape[1]});
  check_sum(rule, args.sum);
  check_blocks(rule, args.row_blocks, args.a.shape[0]);
  rule.require(args.sum.high.numel() == args.a.shape[1] * args.b.shape[1],
               "the sum is not of the product's size");
  for (const Tensor& half : {args.sum.high, args.sum.low, args.sum.invalid})
    rule.apart(half, "the sum", {{args.a, "a"}, {args.b, "b"}});
  inner_->exact_matmul(args, stream);
}

void Checked::exact_read(const ExactReadArgs& args, Stream& stream) {
  const Contract rule = contract("exact_read");
  check_sum(rule, args.sum);
  rule.present(args.dst, "dst");
  rule.require(args.dst.dtype == DType::kF32 || args.dst.dtype == DType::kF64,
               "dst is neither f32 nor f64");
  rule.require(args.dst.numel() == args.sum.high.numel(), "dst and sum differ in size");
  rule.apart(args.dst, "dst",
             {{args.sum.high, "high"}, {args.sum.low, "low"}, {args.sum.invalid, "invalid"}});
  inner_->exact_read(args, stream);
}

}  // namespace

std::unique_ptr<Kernels> make_checked(std::unique_ptr<Kernels> inner, DeviceId device) {
  return std::make_unique<Checked>(std::move(inner), device);
}

}  // namespace farspan
