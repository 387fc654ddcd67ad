// What the invariant mode's decorator hands on: which blocks, which sums.
#include "train/block_kernels.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "kernels/backend.h"
#include "kernels/checked.h"

namespace farspan {
namespace {

using Borders = std::vector<std::int64_t>;

// Notes what arrives, and does nothing.
class Recorder final : public Kernels {
 public:
  std::vector<std::string> calls;

  void matmul(const MatmulArgs& a, Stream&) override {
    calls.push_back(fmt::format("matmul {}", text(a.row_blocks)));
  }
  void exact_matmul(const ExactMatmulArgs& a, Stream&) override {
    calls.push_back(fmt::format("exact_matmul {} into {}", text(a.row_blocks), a.sum.high.numel()));
  }
  void rmsnorm_backward(const RmsNormBackwardArgs& a, Stream&) override {
    calls.push_back(
        fmt::format("rmsnorm_backward {} {} {}", a.x.shape[0], a.dx.shape[0], a.rstd.shape[0]));
  }
  void cross_entropy(const CrossEntropyArgs& a, Stream&) override {
    calls.push_back(fmt::format("cross_entropy {} {}", a.logits.shape[0], a.nll.defined()));
  }
  void exact_add(const ExactAddArgs& a, Stream&) override {
    calls.push_back(fmt::format("exact_add {}{}", a.src.numel(), a.ids.defined() ? " by ids" : ""));
  }
  void fill(const FillArgs&, Stream&) override {}

  void copy(const CopyArgs&, Stream&) override { FAIL(); }
  void add(const AddArgs&, Stream&) override { FAIL(); }
  void rmsnorm_forward(const RmsNormForwardArgs&, Stream&) override { FAIL(); }
  void rope_table(const RopeTableArgs&, Stream&) override { FAIL(); }
  void rope_apply(const RopeApplyArgs&, Stream&) override { FAIL(); }
  void swiglu_forward(const SwiGluForwardArgs&, Stream&) override { FAIL(); }
  void swiglu_backward(const SwiGluBackwardArgs&, Stream&) override { FAIL(); }
  void embedding_forward(const EmbeddingForwardArgs&, Stream&) override { FAIL(); }
  void embedding_backward(const EmbeddingBackwardArgs&, Stream&) override { FAIL(); }
  void squared_norm(const SquaredNormArgs&, Stream&) override { FAIL(); }
  void clip(const ClipArgs&, Stream&) override { FAIL(); }
  void adamw(const AdamWArgs&, Stream&) override { FAIL(); }
  void attention_forward(const AttentionForwardArgs&, Stream&) override { FAIL(); }
  void attention_delta(const AttentionDeltaArgs&, Stream&) override { FAIL(); }
  void attention_backward(const AttentionBackwardArgs&, Stream&) override { FAIL(); }
  void copy_2d(const Copy2dArgs&, Stream&) override { FAIL(); }
  void exact_read(const ExactReadArgs&, Stream&) override { FAIL(); }

 private:
  static std::string text(std::span<const std::int64_t> borders) {
    return fmt::format("[{}]", fmt::join(borders, ","));
  }
};

class BlockKernelsTest : public ::testing::Test {
 protected:
  BlockKernelsTest() {
    blocks_.redirect(gradients_,
                     {take(DType::kI64, {100}), take(DType::kI64, {100}), take(DType::kI64, {1})});
    blocks_.redirect(loss_,
                     {take(DType::kI64, {1}), take(DType::kI64, {1}), take(DType::kI64, {1})});
    blocks_.begin_pass(row_blocks_, scratch_);
  }
  Tensor take(DType dtype, Shape shape) { return arena_.take(dtype, shape, "t"); }
  Tensor f32(Shape shape) { return take(DType::kF32, shape); }
  std::vector<std::string> calls() { return std::exchange(recorder_.calls, {}); }
  using Calls = std::vector<std::string>;

  std::unique_ptr<Backend> backend_ = make_backend({.kind = DeviceKind::kDry});
  Stream& stream_ = backend_->stream();
  Arena arena_{backend_->device(), kDryCapacity, "arena"};
  Arena scratch_{backend_->device(), kDryCapacity, "scratch"};
  Recorder recorder_;
  BlockKernels blocks_{recorder_};
  Borders row_blocks_{0, 4, 8, 11};
  Tensor gradients_ = f32({100}), loss_ = take(DType::kF64, {1});
};

TEST_F(BlockKernelsTest, RowsOfTokensAreCutAtTheBlocks) {
  blocks_.matmul({.a = f32({11, 3}), .b = f32({3, 5}), .out = f32({11, 5})}, stream_);
  blocks_.matmul({.a = f32({3, 3}), .b = f32({3, 5}), .out = f32({3, 5})}, stream_);
  EXPECT_EQ(calls(), (Calls{"matmul [0,4,8,11]", "matmul [0,3]"}));
  EXPECT_THROW(blocks_.matmul({.a = f32({5, 3}), .b = f32({3, 5}), .out = f32({5, 5})}, stream_),
               InternalError)
      << "neither all tokens nor one block";
  const Borders none{0};
  blocks_.begin_pass(none, scratch_);
  blocks_.matmul({.a = f32({0, 3}), .b = f32({3, 5}), .out = f32({0, 5})}, stream_);
  EXPECT_EQ(calls(), (Calls{"matmul [0]"}));
}

TEST_F(BlockKernelsTest, GradientsGoToTheirPartOfTheSum) {
  const auto weight = [&](const Tensor& out) {
    blocks_.matmul({.a = f32({11, 3}),
                    .b = f32({11, 5}),
                    .out = out,
                    .trans_a = true,
                    .mode = GradMode::kAccumulate},
                   stream_);
  };
  weight(gradients_.rows(20, 15).view({3, 5}));
  EXPECT_EQ(calls(), (Calls{"exact_matmul [0,4,8,11] into 15"}));
  EXPECT_THROW(weight(f32({3, 5})), InternalError) << "not a gradient";
  EXPECT_THROW(blocks_.matmul({.a = f32({11, 3}),
                               .b = f32({11, 5}),
                               .out = gradients_.rows(20, 15).view({3, 5}),
                               .trans_a = true},
                              stream_),
               InternalError)
      << "a sum over tokens that is not added";

  blocks_.rmsnorm_backward({.x = f32({11, 6}),
                            .weight = f32({6}),
                            .rstd = f32({11}),
                            .dy = f32({11, 6}),
                            .dx = f32({11, 6}),
                            .dweight = gradients_.rows(94, 6)},
                           stream_);
  EXPECT_EQ(calls(), (Calls{"rmsnorm_backward 4 4 4", "exact_add 6", "rmsnorm_backward 4 4 4",
                            "exact_add 6", "rmsnorm_backward 3 3 3", "exact_add 6"}));
  blocks_.embedding_backward({.ids = take(DType::kI32, {11}),
                              .dout = f32({11, 2}),
                              .dtable = gradients_.rows(0, 20).view({10, 2})},
                             stream_);
  EXPECT_EQ(calls(), (Calls{"exact_add 22 by ids"}));
}

TEST_F(BlockKernelsTest, TheLossIsTakenBlockByBlock) {
  const CrossEntropyArgs args{.logits = f32({11, 9}),
                              .labels = take(DType::kI32, {11}),
                              .dlogits = {},
                              .nll = f32({11}),
                              .loss_sum = loss_,
                              .valid_count = take(DType::kF64, {1})};
  blocks_.cross_entropy(args, stream_);
  EXPECT_EQ(calls(), (Calls{"cross_entropy 4 true", "exact_add 1", "cross_entropy 4 true",
                            "exact_add 1", "cross_entropy 3 true", "exact_add 1"}));
  CrossEntropyArgs elsewhere = args;
  elsewhere.loss_sum = take(DType::kF64, {1});
  EXPECT_THROW(blocks_.cross_entropy(elsewhere, stream_), InternalError);
  EXPECT_EQ(scratch_.used(), 0u);
}

}  // namespace
}  // namespace farspan
