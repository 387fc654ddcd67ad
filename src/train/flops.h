// Model FLOPs of a training step, and the peak against which they are held (MFU).
//
//   const FlopModel flops(config.model());
//   double step = flops.step(tokens, flops.pairs(batch.segments));       // all ranks' tokens
//   MatmulPeak peak = measure_matmul_peak(backend, DType::kBF16);
//   row.tflops_per_rank = step / seconds / num_ranks / 1e12;
//   row.mfu = step / seconds / num_ranks / peak.flops_per_second;
//
// Model FLOPs are what the mathematics needs, whatever was executed: forward 2 and backward 4 per
// weight and token, attention by the pairs that its mask shows (documents, windows, sinks, sparse
// patterns), nothing for recompute.
//   6 N_mm per token,  N_mm = L (2 d q + 2 d k + 3 d f) + V d    (head counted, embedding not)
//   12 q per layer and visible (query, key) pair                 (forward 4, backward 8)
// with d hidden size, f MLP width, q = query heads * head_dim, k = key/value heads * head_dim, L
// layers, V vocabulary. For causal sequences of s tokens that is 6 N_mm + 12 L q (s + 1) / 2 a
// token (Chowdhery et al. 2022 (PaLM), appendix B, with exact pairs in place of s).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "config/run_config.pb.h"
#include "kernels/backend.h"
#include "parallel/attention_pattern.h"

namespace farspan {

class FlopModel {
 public:
  // Of a resolved configuration: head_dim, num_key_value_heads are set.
  explicit FlopModel(const config::Model& model);

  // N_mm: weights that take part in a matrix product, for each token.
  double matmul_weights() const { return matmul_weights_; }
  // Visible pairs of these documents, mean over layers and query heads: what
  // MicroBatch::visible_pairs counts. `segments` as in data/batch.h.
  double pairs(std::span<const std::int32_t> segments) const;
  // FLOPs of one optimizer step over `tokens` tokens with these pairs (of all ranks).
  double step(std::int64_t tokens, double pairs) const;
  // The same per token, for sequences of one document of `sequence_length` tokens.
  double per_token(std::int64_t sequence_length) const;

 private:
  double matmul_weights_ = 0;
  double pair_flops_ = 0;  // 12 q L
  LayerPatterns patterns_;
  std::int64_t num_kv_heads_ = 1;
};

struct MatmulPeak {
  double flops_per_second = 0;
  std::string
      how;  // "measured: bf16 matmul 1024x1024x1024", "data sheet: dense bf16 of NVIDIA H200"
  // "peak 0.95 TFLOP/s per rank (measured: bf16 matmul 1024x1024x1024)"
  std::string description() const;
};

// The dense rate, without sparsity, that NVIDIA's data sheet gives for tensor cores (bf16) or for
// IEEE f32; nullopt for a device that is not known, or a part of one. `device`: Device::name().
std::optional<MatmulPeak> data_sheet_peak(std::string_view device, DType dtype);

// What MFU refers to: the data sheet's rate where the device is known, else measured.
MatmulPeak matmul_peak(Backend& backend, DType dtype);

// The best rate that a matmul (C = A B^T, f32 accumulation) reaches on this backend as it is now:
// this rank's threads, while the other ranks measure too (the caller starts them together). Takes
// about half a second and 50 MB on a CPU. Not on the dry backend (CHECK). Errors: those of the
// device's memory.
MatmulPeak measure_matmul_peak(Backend& backend, DType dtype);

}  // namespace farspan
