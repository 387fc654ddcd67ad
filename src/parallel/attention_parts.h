// What the strategies of attention share: rows and heads in and out of the buffers that travel, and
// the terms of the kernels' calls.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/attention.h"

namespace farspan {

// dst rows 0.. = the given rows of src, squeezed together. (T, H, D) each, one dtype.
void pack_rows(const StepContext& ctx, Tensor src, const std::vector<IndexRange>& ranges,
               Tensor dst);

// The given rows of dst += src rows 0..; f32 or i64.
void add_rows(const StepContext& ctx, Tensor src, const std::vector<IndexRange>& ranges,
              Tensor dst);

// Heads [src_head, src_head + count) of src (T, Hs, D) into those of dst (T, Hd, D) from dst_head.
// f32 and bf16 may differ; kAccumulate: dst f32.
struct CopyHeads {
  Tensor src, dst;
  std::int64_t src_head = 0, dst_head = 0, count = 0;
  GradMode mode = GradMode::kOverwrite;
};
void copy_heads(const StepContext& ctx, const CopyHeads& args);

// Waits, as time that no computation hides: traced as "attention.exposed".
void wait_exposed(const StepContext& ctx, Pending& pending);

PositionBias position_bias(const BiasTables& bias, const StepContext& ctx);

// 1 / sqrt(D) of q (T, H, D).
float score_scale(const Tensor& q);

}  // namespace farspan
