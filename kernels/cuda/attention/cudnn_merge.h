// Puts a piece of attention that is already divided by its sum into the state of its rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/args.h"

namespace farspan::cuda {

// `batch` runs of `q_len` query rows, the first at q_begin, each q_step after the one before.
struct PartialRows {
  std::int64_t batch = 1, q_len = 0, q_begin = 0, q_step = 0;
};

// For each row: with L = partial_lse, acc = acc 2^(row_max - m) + partial_out 2^(L log2(e) - m) and
// so on (attention.h has the form of the state; attention.md section 2 the formula).
//   partial_out (batch, q_len, Hq, D) bf16    partial_lse (batch, Hq, q_len) f32, natural logarithm
// acc, row_max and row_sum as in AttentionForwardArgs. Asynchronous on `stream`.
void merge_partial(const Tensor& partial_out, const Tensor& partial_lse, const PartialRows& rows,
                   const AttentionForwardArgs& state, cudaStream_t stream);

}  // namespace farspan::cuda
