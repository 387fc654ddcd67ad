// The rules of args.h, one function per operation, in the same order: everything but attention
// (checked_attention.cpp) and exact sums (checked_exact.cpp).
#include "kernels/checked.h"

#include "kernels/checked_kernels.h"

namespace farspan {

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
  rule.require(args.residual.defined() == args.sum.defined(),
               "residual and sum come together or not at all");
  if (args.residual.defined()) {
    rule.shaped(args.residual, "residual", dtype, {t, c});
    rule.shaped(args.sum, "sum", dtype, {t, c});
    rule.apart(args.residual, "residual", {{args.y, "y"}, {args.rstd, "rstd"}});
    rule.same_or_apart(args.sum, "sum", {{args.x, "x"}, {args.residual, "residual"}});
    rule.apart(args.sum, "sum", {{args.weight, "weight"}, {args.y, "y"}, {args.rstd, "rstd"}});
  }
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
  const bool tables = args.table_ids.defined();
  rule.dims(args.inv_freq, "inv_freq", tables ? 2 : 1);
  const std::int64_t t = args.positions.shape[0];
  const std::int64_t half = args.inv_freq.shape[tables ? 1 : 0];
  rule.shaped(args.positions, "positions", DType::kI32, {t});
  rule.shaped(args.inv_freq, "inv_freq", DType::kF64, args.inv_freq.shape);
  if (tables) {
    rule.shaped(args.table_ids, "table_ids", DType::kI32, {t});
    rule.apart(args.cos, "cos", {{args.table_ids, "table_ids"}});
    rule.apart(args.sin, "sin", {{args.table_ids, "table_ids"}});
  }
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

std::unique_ptr<Kernels> make_checked(std::unique_ptr<Kernels> inner, DeviceId device) {
  return std::make_unique<Checked>(std::move(inner), device);
}

}  // namespace farspan
