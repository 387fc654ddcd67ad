// The delta of attention's backward pass (kernels/args.h: AttentionDeltaArgs).
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/kernel_table.h"

namespace farspan::cpu {
namespace {

// delta (Hq, Tq) = rowsum(dout * out) of rows [begin, end).
template <class I, class In>
void delta_rows(const DeltaCall& call, Index begin, Index end) {
  for (Index t = begin; t < end; ++t)
    for (Index h = 0; h < call.num_q_heads; ++h) {
      const Index offset = (t * call.num_q_heads + h) * call.head_dim;
      const In* out = static_cast<const In*>(call.out) + offset;
      const In* dout = static_cast<const In*>(call.dout) + offset;
      typename I::V sum = I::set1(0.0f);
      for (Index d = 0; d < call.head_dim; d += I::kLanes)
        sum = I::fma(I::as_floats(I::load_row(out + d, call.head_dim - d)),
                     I::as_floats(I::load_row(dout + d, call.head_dim - d)), sum);
      call.delta[h * call.num_q + t] = I::reduce_add(sum);
    }
}

}  // namespace
}  // namespace farspan::cpu
