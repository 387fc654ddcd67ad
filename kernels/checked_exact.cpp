// The rules of args.h for copies between layouts and exact sums.
#include "kernels/checked_kernels.h"

namespace farspan {
namespace {

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

void check_sum(const Contract& rule, const ExactSum& sum) {
  rule.shaped(sum.high, "high", DType::kI64, sum.high.shape);
  rule.shaped(sum.low, "low", DType::kI64, sum.high.shape);
  rule.shaped(sum.invalid, "invalid", DType::kI64, {1});
  rule.apart(sum.high, "high", {{sum.low, "low"}, {sum.invalid, "invalid"}});
  rule.apart(sum.low, "low", {{sum.invalid, "invalid"}});
}

}  // namespace

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

}  // namespace farspan
