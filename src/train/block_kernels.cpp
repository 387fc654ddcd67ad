#include "train/block_kernels.h"

#include <algorithm>
#include <functional>

namespace farspan {

std::optional<ExactSum> BlockKernels::sum_behind(const Tensor& t) const {
  const std::less_equal<const std::byte*> not_after;
  for (const auto& [target, sum] : redirects_) {
    if (t.empty() || !not_after(target.data, t.data) ||
        !not_after(t.data + t.bytes(), target.data + target.bytes()))
      continue;
    FARSPAN_CHECK(t.dtype == target.dtype, "{} is part of {}", t.to_string(), target.to_string());
    const auto begin = static_cast<std::int64_t>(static_cast<std::size_t>(t.data - target.data) /
                                                 size_of(t.dtype));
    return ExactSum{sum.high.rows(begin, t.numel()), sum.low.rows(begin, t.numel()), sum.invalid};
  }
  return std::nullopt;
}

ExactSum BlockKernels::gradient_sum(const Tensor& t, std::string_view operation) const {
  const auto sum = sum_behind(t);
  FARSPAN_CHECK(sum.has_value(), "{}: {} is not a gradient of this step", operation, t.to_string());
  return *sum;
}

std::span<const std::int64_t> BlockKernels::blocks_of(std::int64_t rows) {
  FARSPAN_CHECK(scratch_ != nullptr && !row_blocks_.empty(), "no pass was begun");
  if (rows == row_blocks_.back()) return row_blocks_;
  std::int64_t largest = 0;
  for (std::size_t i = 0; i + 1 < row_blocks_.size(); ++i)
    largest = std::max(largest, row_blocks_[i + 1] - row_blocks_[i]);
  FARSPAN_CHECK(rows <= largest, "{} rows are neither all {} tokens nor one block", rows,
                row_blocks_.back());
  one_block_ = {0, rows};
  return one_block_;
}

void BlockKernels::for_each_block(std::int64_t rows, const Block& body) {
  const auto borders = blocks_of(rows);
  for (std::size_t i = 0; i + 1 < borders.size(); ++i)
    if (borders[i] < borders[i + 1]) body(borders[i], borders[i + 1] - borders[i]);
}

void BlockKernels::matmul(const MatmulArgs& args, Stream& stream) {
  if (!args.trans_a) {  // rows of out are tokens
    MatmulArgs blocked = args;
    blocked.row_blocks = blocks_of(args.out.shape[0]);
    inner_.matmul(blocked, stream);
    return;
  }
  FARSPAN_CHECK(args.mode == GradMode::kAccumulate, "a sum over tokens that is no gradient");
  FARSPAN_CHECK(!args.trans_b, "a gradient is dy^T x");
  inner_.exact_matmul({.a = args.a,
                       .b = args.b,
                       .row_blocks = blocks_of(args.a.shape[0]),
                       .sum = gradient_sum(args.out, "matmul")},
                      stream);
}

void BlockKernels::rmsnorm_backward(const RmsNormBackwardArgs& args, Stream& stream) {
  const ExactSum sum = gradient_sum(args.dweight, "rmsnorm_backward");
  auto scope = scratch_->scope();
  const Tensor partial = scratch_->take(DType::kF32, args.dweight.shape, "invariant.partial");
  for_each_block(args.x.shape[0], [&](std::int64_t begin, std::int64_t count) {
    inner_.fill({.dst = partial, .value = 0}, stream);
    RmsNormBackwardArgs block = args;
    block.x = args.x.rows(begin, count);
    block.rstd = args.rstd.rows(begin, count);
    block.dy = args.dy.rows(begin, count);
    block.dx = args.dx.rows(begin, count);
    block.dweight = partial;
    inner_.rmsnorm_backward(block, stream);
    inner_.exact_add({.src = partial, .ids = {}, .sum = sum}, stream);
  });
}

// Rows are terms of their own: no blocks.
void BlockKernels::embedding_backward(const EmbeddingBackwardArgs& args, Stream& stream) {
  inner_.exact_add(
      {.src = args.dout, .ids = args.ids, .sum = gradient_sum(args.dtable, "embedding_backward")},
      stream);
}

void BlockKernels::cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  const ExactSum sum = gradient_sum(args.loss_sum, "cross_entropy");
  auto scope = scratch_->scope();
  const Tensor partial = scratch_->take(DType::kF64, {1}, "invariant.partial");
  const auto rows = [](const Tensor& t, std::int64_t begin, std::int64_t count) {
    return t.defined() ? t.rows(begin, count) : t;
  };
  for_each_block(args.logits.shape[0], [&](std::int64_t begin, std::int64_t count) {
    inner_.fill({.dst = partial, .value = 0}, stream);
    inner_.cross_entropy({.logits = args.logits.rows(begin, count),
                          .labels = args.labels.rows(begin, count),
                          .dlogits = rows(args.dlogits, begin, count),
                          .nll = rows(args.nll, begin, count),
                          .loss_sum = partial,
                          .valid_count = args.valid_count},
                         stream);
    inner_.exact_add({.src = partial, .ids = {}, .sum = sum}, stream);
  });
}

}  // namespace farspan
