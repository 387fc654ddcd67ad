// Fills a KernelTable from a multiplier and an element type; included by each kernels_*.cpp.
// Internal linkage on purpose: see kernel_table.h.
#pragma once

#include "kernels/cpu/attention/backward-inl.h"
#include "kernels/cpu/attention/delta-inl.h"
#include "kernels/cpu/attention/forward-inl.h"

namespace farspan::cpu {
namespace {

template <class M, class In>
struct Kernels {
  static std::size_t workspace_bytes(Index head_dim, const TileSizes& tiles, bool decay) {
    const std::size_t forward = Forward<M, In>::workspace_bytes(head_dim, tiles, decay);
    const std::size_t backward = Backward<M, In>::workspace_bytes(head_dim, tiles, decay);
    return forward > backward ? forward : backward;
  }
  static void forward(const ForwardCall& call, const ForwardTask& task, std::byte* workspace) {
    [[maybe_unused]] const typename M::Session session{};
    Forward<M, In>(call, task, workspace).run();
  }
  static void backward(const BackwardCall& call, const BackwardTask& task, std::byte* workspace) {
    [[maybe_unused]] const typename M::Session session{};
    Backward<M, In>(call, task, workspace).run();
  }
  static void delta(const DeltaCall& call, Index begin, Index end) {
    delta_rows<typename M::Isa, In>(call, begin, end);
  }
  static void exp2(const float* x, float* y, Index n) {
    using I = typename M::Isa;
    for (Index i = 0; i < n; i += I::kLanes)
      I::store_row(y + i, I::exp2(I::load_partial(x + i, n - i)), n - i);
  }
  static constexpr KernelTable kTable = {workspace_bytes, forward, backward, delta, exp2};
};

}  // namespace
}  // namespace farspan::cpu
