// Attention that keeps keys and values for later passes, and attends to those kept.
//
//   RecordingAttention first(strategy, cache);       // a prompt over the ranks, by any strategy
//   CachedAttention next(cache, {{0, 1}}, world);    // tokens that every rank computes alike
//   StepContext ctx = ...; ctx.attention = &next;
//
// With several ranks each keeps a share of the tokens. A later token's query meets every share, and
// the partial results are merged by their log-sum-exps (Milakov & Gimelshein 2018; Flash-Decoding):
//   lse = log sum_r e^(lse_r)        out = sum_r e^(lse_r - lse) out_r
#pragma once

#include <vector>

#include "parallel/attention.h"
#include "parallel/kv_cache.h"

namespace farspan {

// The strategy itself over ctx.plans; the rank's own tokens go into the cache, which has been
// extended by them.
class RecordingAttention final : public Attention {
 public:
  RecordingAttention(const Attention& strategy, KvCache& cache)
      : strategy_(strategy), cache_(cache) {}
  AttentionInputs spread(const AttentionInputs& in, Arena& arena,
                         const StepContext& ctx) const override;
  bool spreads() const override { return strategy_.spreads(); }
  Shape lse_shape(const AttentionInputs& spread) const override {
    return strategy_.lse_shape(spread);
  }
  void forward(const AttentionInputs& spread, Tensor out, Tensor lse, const BiasTables& bias,
               const StepContext& ctx) const override {
    strategy_.forward(spread, out, lse, bias, ctx);
  }
  void backward(const AttentionInputs&, Tensor, Tensor, Tensor, const BiasTables&,
                const AttentionGradients&, const StepContext&) const override;

 private:
  const Attention& strategy_;
  KvCache& cache_;
};

// Attention of tokens that this rank computes, to all that are kept. ctx.plans are those of
// plan_over_cache, for the cache's state after the pass.
class CachedAttention final : public Attention {
 public:
  // `kept`: which rows of the pass this rank keeps; the cache has been extended by them. `ranks`:
  // those that hold shares and compute the same tokens; null: there is one.
  CachedAttention(KvCache& cache, std::vector<IndexRange> kept, Communicator* ranks)
      : cache_(cache), kept_(std::move(kept)), ranks_(ranks) {}
  AttentionInputs spread(const AttentionInputs& in, Arena&, const StepContext&) const override {
    return in;
  }
  void forward(const AttentionInputs& in, Tensor out, Tensor lse, const BiasTables& bias,
               const StepContext& ctx) const override;
  void backward(const AttentionInputs&, Tensor, Tensor, Tensor, const BiasTables&,
                const AttentionGradients&, const StepContext&) const override;

 private:
  KvCache& cache_;
  std::vector<IndexRange> kept_;
  Communicator* ranks_;
};

// out (T, Hq, D) compute and lse (Hq, T) f32 of one rank's keys become those of all ranks' keys,
// bitwise the same on every rank. Collective; waits for the device.
void merge_over_ranks(Tensor out, Tensor lse, Communicator& ranks, const StepContext& ctx);

}  // namespace farspan
