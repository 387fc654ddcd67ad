#include "parallel/attention_parts.h"

#include <cmath>

namespace farspan {
namespace {

std::int64_t row_width(const Tensor& t) { return t.shape[1] * t.shape[2]; }

}  // namespace

void pack_rows(const StepContext& ctx, Tensor src, const std::vector<IndexRange>& ranges,
               Tensor dst) {
  const std::int64_t width = row_width(src);
  std::int64_t row = 0;
  for (const IndexRange& r : ranges) {
    if (r.stride == 1)
      ctx.kernels().copy({.src = src.rows(r.begin, r.size()), .dst = dst.rows(row, r.size())},
                         ctx.stream());
    else
      ctx.kernels().copy_2d({.src = src,
                             .dst = dst,
                             .rows = r.size(),
                             .cols = width,
                             .src_begin = r.begin * width,
                             .src_stride = r.stride * width,
                             .dst_begin = row * width,
                             .dst_stride = width},
                            ctx.stream());
    row += r.size();
  }
}

void add_rows(const StepContext& ctx, Tensor src, const std::vector<IndexRange>& ranges,
              Tensor dst) {
  const std::int64_t width = row_width(src);
  std::int64_t row = 0;
  for (const IndexRange& r : ranges) {
    if (r.stride == 1 && dst.dtype == DType::kF32) {
      const Tensor into = dst.rows(r.begin, r.size());
      ctx.kernels().add({.a = into, .b = src.rows(row, r.size()), .out = into}, ctx.stream());
    } else {
      ctx.kernels().copy_2d({.src = src,
                             .dst = dst,
                             .rows = r.size(),
                             .cols = width,
                             .src_begin = row * width,
                             .src_stride = width,
                             .dst_begin = r.begin * width,
                             .dst_stride = r.stride * width,
                             .mode = GradMode::kAccumulate},
                            ctx.stream());
    }
    row += r.size();
  }
}

void copy_heads(const StepContext& ctx, const CopyHeads& args) {
  const std::int64_t head_dim = args.src.shape[2];
  ctx.kernels().copy_2d({.src = args.src,
                         .dst = args.dst,
                         .rows = args.src.shape[0],
                         .cols = args.count * head_dim,
                         .src_begin = args.src_head * head_dim,
                         .src_stride = row_width(args.src),
                         .dst_begin = args.dst_head * head_dim,
                         .dst_stride = row_width(args.dst),
                         .mode = args.mode},
                        ctx.stream());
}

void wait_exposed(const StepContext& ctx, Pending& pending) {
  if (!pending.active()) return;
  auto section = ctx.trace.section("attention.exposed");
  pending.wait();
}

PositionBias position_bias(const BiasTables& bias, const StepContext& ctx) {
  return {
      .slopes = bias.slopes, .decay = bias.decay, .position_stride = ctx.plan().position_stride};
}

float score_scale(const Tensor& q) { return 1.0f / std::sqrt(static_cast<float>(q.shape[2])); }

}  // namespace farspan
