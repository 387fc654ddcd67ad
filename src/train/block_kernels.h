// Kernels that compute block by block (train/invariant_step.h): a decorator of any backend's.
//
// A block is a run of tokens. Operations on rows of tokens give each row bits that depend on its
// block alone; additions into a redirected tensor, a gradient or the loss, are taken block by block
// and go into an exact sum instead.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "kernels/kernels.h"

namespace farspan {

class BlockKernels final : public Kernels {
 public:
  explicit BlockKernels(Kernels& inner) : inner_(inner) {}

  // Additions into `target` (n) f32 or f64, or into a part of it, go to `sum` (n).
  void redirect(Tensor target, const ExactSum& sum) { redirects_.push_back({target, sum}); }
  // Borders of the blocks of the tokens at hand, 0 first; temporaries are taken from `scratch`.
  void begin_pass(std::span<const std::int64_t> row_blocks, Arena& scratch) {
    row_blocks_ = row_blocks;
    scratch_ = &scratch;
  }

  // By blocks. Tensors have as many rows as there are tokens at hand, or those of one block.
  // CHECK: additions into a gradient have a redirect.
  void matmul(const MatmulArgs&, Stream&) override;
  void rmsnorm_backward(const RmsNormBackwardArgs&, Stream&) override;
  void embedding_backward(const EmbeddingBackwardArgs&, Stream&) override;
  void cross_entropy(const CrossEntropyArgs&, Stream&) override;

  // A row, an element or a tensor at a time already: as they are.
  void copy(const CopyArgs& a, Stream& s) override { inner_.copy(a, s); }
  void fill(const FillArgs& a, Stream& s) override { inner_.fill(a, s); }
  void add(const AddArgs& a, Stream& s) override { inner_.add(a, s); }
  void rmsnorm_forward(const RmsNormForwardArgs& a, Stream& s) override {
    inner_.rmsnorm_forward(a, s);
  }
  void rope_table(const RopeTableArgs& a, Stream& s) override { inner_.rope_table(a, s); }
  void rope_apply(const RopeApplyArgs& a, Stream& s) override { inner_.rope_apply(a, s); }
  void swiglu_forward(const SwiGluForwardArgs& a, Stream& s) override {
    inner_.swiglu_forward(a, s);
  }
  void swiglu_backward(const SwiGluBackwardArgs& a, Stream& s) override {
    inner_.swiglu_backward(a, s);
  }
  void embedding_forward(const EmbeddingForwardArgs& a, Stream& s) override {
    inner_.embedding_forward(a, s);
  }
  void squared_norm(const SquaredNormArgs& a, Stream& s) override { inner_.squared_norm(a, s); }
  void clip(const ClipArgs& a, Stream& s) override { inner_.clip(a, s); }
  void adamw(const AdamWArgs& a, Stream& s) override { inner_.adamw(a, s); }
  // parallel/invariant_attention.h calls these block by block itself.
  void attention_forward(const AttentionForwardArgs& a, Stream& s) override {
    inner_.attention_forward(a, s);
  }
  void attention_delta(const AttentionDeltaArgs& a, Stream& s) override {
    inner_.attention_delta(a, s);
  }
  void attention_backward(const AttentionBackwardArgs& a, Stream& s) override {
    inner_.attention_backward(a, s);
  }
  void copy_2d(const Copy2dArgs& a, Stream& s) override { inner_.copy_2d(a, s); }
  void exact_add(const ExactAddArgs& a, Stream& s) override { inner_.exact_add(a, s); }
  void exact_matmul(const ExactMatmulArgs& a, Stream& s) override { inner_.exact_matmul(a, s); }
  void exact_read(const ExactReadArgs& a, Stream& s) override { inner_.exact_read(a, s); }

 private:
  struct Redirect {
    Tensor target;
    ExactSum sum;
  };
  using Block = std::function<void(std::int64_t first_row, std::int64_t num_rows)>;

  // The exact sum behind a tensor, or none.
  std::optional<ExactSum> sum_behind(const Tensor& t) const;
  ExactSum gradient_sum(const Tensor& t, std::string_view operation) const;
  // Borders of the blocks of a tensor with this many rows.
  std::span<const std::int64_t> blocks_of(std::int64_t rows);
  void for_each_block(std::int64_t rows, const Block& body);

  Kernels& inner_;
  std::vector<Redirect> redirects_;
  std::span<const std::int64_t> row_blocks_;
  std::array<std::int64_t, 2> one_block_{};
  Arena* scratch_ = nullptr;
};

}  // namespace farspan
