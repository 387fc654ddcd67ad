// The class behind make_checked: every operation checks its rules and passes the call on. Private
// to kernels/checked*.cpp, which split the operations as args.h does.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "kernels/contract.h"
#include "kernels/kernels.h"

namespace farspan {

class Checked final : public Kernels {
 public:
  Checked(std::unique_ptr<Kernels> inner, DeviceId device)
      : inner_(std::move(inner)), device_(device) {}

  void copy(const CopyArgs&, Stream&) override;
  void fill(const FillArgs&, Stream&) override;
  void add(const AddArgs&, Stream&) override;
  void matmul(const MatmulArgs&, Stream&) override;
  void rmsnorm_forward(const RmsNormForwardArgs&, Stream&) override;
  void rmsnorm_backward(const RmsNormBackwardArgs&, Stream&) override;
  void rope_table(const RopeTableArgs&, Stream&) override;
  void rope_apply(const RopeApplyArgs&, Stream&) override;
  void swiglu_forward(const SwiGluForwardArgs&, Stream&) override;
  void swiglu_backward(const SwiGluBackwardArgs&, Stream&) override;
  void embedding_forward(const EmbeddingForwardArgs&, Stream&) override;
  void embedding_backward(const EmbeddingBackwardArgs&, Stream&) override;
  void cross_entropy(const CrossEntropyArgs&, Stream&) override;
  void squared_norm(const SquaredNormArgs&, Stream&) override;
  void clip(const ClipArgs&, Stream&) override;
  void adamw(const AdamWArgs&, Stream&) override;
  void attention_forward(const AttentionForwardArgs&, Stream&) override;
  void attention_delta(const AttentionDeltaArgs&, Stream&) override;
  void attention_backward(const AttentionBackwardArgs&, Stream&) override;
  void copy_2d(const Copy2dArgs&, Stream&) override;
  void exact_add(const ExactAddArgs&, Stream&) override;
  void exact_matmul(const ExactMatmulArgs&, Stream&) override;
  void exact_read(const ExactReadArgs&, Stream&) override;
  void release_recordings() override { inner_->release_recordings(); }

 private:
  Contract contract(std::string_view op) const { return {op, device_}; }

  std::unique_ptr<Kernels> inner_;
  DeviceId device_;
};

inline bool is_float(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

// Borders of blocks of rows, as MatmulArgs::row_blocks says.
inline void check_blocks(const Contract& rule, std::span<const std::int64_t> borders,
                         std::int64_t rows) {
  rule.require(!borders.empty() && borders.front() == 0 && borders.back() == rows &&
                   std::is_sorted(borders.begin(), borders.end()),
               "row_blocks do not ascend from 0 to the number of rows");
}

}  // namespace farspan
