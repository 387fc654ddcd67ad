// Attention that lets a model read further than it was trained for, without training: distances
// that the model has never seen are replaced by ones that it has. Over kept keys, on one rank; rope
// only, since keys are rotated by positions that are not their own.
//
//   LongAttention attention({.kind = LongAttentionKind::kDualChunk, .context = 4096}, sizes,
//   rotary,
//                           arena);
//   attention.begin(count, ctx);        // tables and slices of a pass; ctx.scratch
//   ctx.attention = &attention;
//
// Legend: i, j indices of query and key in the document   L = context, tokens that were trained
//
// LM-Infinite (Han et al. 2023, arXiv 2308.16137: Lambda-shaped mask, distance limit): a query sees
// the first `global` tokens and the last L. Distances are capped at L: a key j of the first ones
// with i - j >= L is met as if L tokens away,
//   score(i, j) = q_i^T R(min(i - j, L)) k_j,   visible iff i - j < L or j < global
//
// Dual Chunk Attention (An et al. 2024, arXiv 2402.17463, the equations of P_k, P_q^Intra,
// P_q^Succ, P_q^Inter and M): the document is cut into chunks
// of s < L tokens; score(i, j) = q_i^T R(M[i][j]) k_j with P_k[j] = j mod s and
//   M = P_q - P_k,   P_q[i] = i mod s                    same chunk                  (intra-chunk)
//                             min(s + i mod s, L - 1)    the chunk just before       (successive)
//                             L - 1                      chunks before that          (inter-chunk)
// In documents of up to L tokens both are the model's own causal attention: there min(s + i mod s,
// L - 1) = s + i mod s, since i < L. Dual chunks need all keys; LM-Infinite keeps those of the
// first `global` and about the last L tokens only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/attention.h"
#include "parallel/kv_cache.h"

namespace farspan {

enum class LongAttentionKind : std::uint8_t { kNone, kLmInfinite, kDualChunk };

struct LongAttentionOptions {
  LongAttentionKind kind = LongAttentionKind::kNone;
  std::int64_t context = 0;  // L, at least 2
  std::int64_t chunk = 0;    // s of dual chunks, 1 <= s < L; 0: three quarters of L, as the paper
  std::int64_t global = 10;  // tokens that LM-Infinite keeps in sight
  std::int64_t chunk_tokens() const {
    return chunk > 0 ? chunk : std::max<std::int64_t>(1, 3 * context / 4);
  }
  // Room for keys that a document of `tokens` tokens needs, beside the first ones, in passes over
  // at most `most` of them.
  std::int64_t room(std::int64_t tokens, std::int64_t most) const {
    if (kind != LongAttentionKind::kLmInfinite) return tokens;
    const std::int64_t between = std::max(most, context / 4);  // before keys are moved again
    return std::min(tokens, context - 1 + between);
  }
};

// How positions turn queries and keys: the model's own frequencies.
struct Rotary {
  Tensor inv_freq;  // (D / 2) f64
  double scale = 1.0;
};

class LongAttention final : public Attention {
 public:
  // Caches come from `arena`; sizes.capacity: options.room().
  LongAttention(const LongAttentionOptions& options, const KvCache::Sizes& sizes,
                const Rotary& rotary, Arena& arena);

  // The next pass computes tokens [tokens(), tokens() + count). Its tables come from ctx.scratch
  // and must stay until the pass is done.
  void begin(std::int64_t count, const StepContext& ctx);
  std::int64_t tokens() const { return tokens_; }

  bool rotates() const override { return true; }
  AttentionInputs spread(const AttentionInputs& in, Arena&, const StepContext&) const override {
    return in;
  }
  // Rotates in.q and in.k in place.
  void forward(const AttentionInputs& in, Tensor out, Tensor lse, const BiasTables& bias,
               const StepContext& ctx) const override;
  void backward(const AttentionInputs&, Tensor, Tensor, Tensor, const BiasTables&,
                const AttentionGradients&, const StepContext&) const override;

 private:
  // Queries at one rule's positions, and the keys that they meet by it.
  struct Part {
    Tensor cos, sin;     // (n, D / 2) f32: of the queries
    bool sinks = false;  // keys are those of sinks_, else of cache_
    std::vector<AttentionSlice> slices;
  };
  Part part(const std::vector<std::int32_t>& positions, const StepContext& ctx) const;
  void begin_lm_infinite(const TokenPiece& queries, const StepContext& ctx);
  void begin_dual_chunk(const TokenPiece& queries, const StepContext& ctx);

  LongAttentionOptions options_;
  Rotary rotary_;
  // Written by forward(), a layer's rows at a time.
  mutable KvCache cache_;    // keys rotated to their own (LM-Infinite) or their chunk's positions
  mutable KvCache sinks_;    // LM-Infinite: the first keys, at position 0
  std::int64_t tokens_ = 0;  // of the document so far
  std::int64_t new_sinks_ = 0;  // the first tokens of the pass
  Part keys_, sink_keys_;       // tables of the pass's keys
  std::vector<Part> parts_;     // with slices, at least one
};

}  // namespace farspan
