// What `checked` refuses, on the dry backend (nothing is read, so anything may be passed).
#include "kernels/checked.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "kernels/backend.h"

namespace farspan {
namespace {

using ::testing::HasSubstr;

class CheckedTest : public ::testing::Test {
 protected:
  Tensor take(DType dtype, Shape shape) {
    const Tensor t{
        .data = buffer_.data() + used_, .dtype = dtype, .shape = shape, .device = buffer_.device()};
    used_ += (t.bytes() + 63) / 64 * 64;
    FARSPAN_CHECK(used_ <= buffer_.bytes());
    return t;
  }
  Tensor f32(Shape shape) { return take(DType::kF32, shape); }
  Tensor bf16(Shape shape) { return take(DType::kBF16, shape); }
  Tensor i32(Shape shape) { return take(DType::kI32, shape); }
  Tensor f64(Shape shape) { return take(DType::kF64, shape); }

  // The message of the InternalError that `call` throws; fails when it throws none.
  std::string refusal(const std::function<void(Kernels&, Stream&)>& call) {
    try {
      call(backend_->kernels(), backend_->stream());
    } catch (const InternalError& e) {
      return e.what();
    }
    ADD_FAILURE() << "not refused";
    return {};
  }

  std::unique_ptr<Backend> backend_ = make_backend({.kind = DeviceKind::kDry});
  Kernels& kernels() { return backend_->kernels(); }
  Stream& stream() { return backend_->stream(); }

 private:
  Buffer buffer_ = backend_->device().allocate(1 << 20);
  std::size_t used_ = 0;
};

TEST_F(CheckedTest, NamesOperationTensorAndBothShapes) {
  const std::string message = refusal([&](Kernels& k, Stream& s) {
    k.matmul({.a = f32({2, 3}), .b = f32({4, 5}), .out = f32({2, 5})}, s);
  });
  EXPECT_THAT(message, HasSubstr("matmul"));
  EXPECT_THAT(message, HasSubstr("b is f32 (4, 5), expected f32 (3, 5)"));
}

TEST_F(CheckedTest, Matmul) {
  const Tensor a = f32({2, 3});
  const Tensor b = f32({3, 4});
  EXPECT_NO_THROW(kernels().matmul({.a = a, .b = b, .out = f32({2, 4})}, stream()));
  EXPECT_NO_THROW(
      kernels().matmul({.a = a, .b = f32({4, 3}), .out = f32({2, 4}), .trans_b = true}, stream()));
  const auto message = [&](const MatmulArgs& args) {
    return refusal([&](Kernels& k, Stream& s) { k.matmul(args, s); });
  };
  EXPECT_THAT(message({.a = a, .b = b, .out = f32({2, 4}), .trans_a = true}), HasSubstr("b is"));
  EXPECT_THAT(message({.a = a, .b = bf16({3, 4}), .out = f32({2, 4})}), HasSubstr("b is bf16"));
  EXPECT_THAT(message({.a = a, .b = b, .out = bf16({2, 4})}), HasSubstr("out is neither"));
  EXPECT_THAT(message({.a = bf16({2, 3}),
                       .b = bf16({3, 4}),
                       .out = bf16({2, 4}),
                       .mode = GradMode::kAccumulate}),
              HasSubstr("f32 out"));
  EXPECT_THAT(message({.a = f32({3, 3}), .b = a.rows(0, 2), .out = a}), HasSubstr("matmul"));
  const Tensor square = f32({3, 3});
  EXPECT_THAT(message({.a = square, .b = f32({3, 3}), .out = square}), HasSubstr("overlaps a"));
  EXPECT_THAT(message({.a = a, .b = b, .out = {}}), HasSubstr("out"));
  EXPECT_THAT(message({.a = f32({6}), .b = b, .out = a}), HasSubstr("2 dimensions"));
  const std::int64_t blocks[] = {0, 1, 2};
  const MatmulArgs good{.a = a, .b = b, .out = f32({2, 4}), .row_blocks = blocks};
  EXPECT_NO_THROW(kernels().matmul(good, stream()));
  const std::int64_t descending[] = {0, 1, 0, 2}, short_of[] = {0, 1};
  for (const std::span<const std::int64_t> borders :
       {std::span<const std::int64_t>(descending), std::span<const std::int64_t>(short_of)}) {
    MatmulArgs bad = good;
    bad.row_blocks = borders;
    EXPECT_THAT(message(bad), HasSubstr("row_blocks"));
  }
  EXPECT_THAT(
      message(
          {.a = f32({3, 2}), .b = b, .out = f32({2, 4}), .trans_a = true, .row_blocks = blocks}),
      HasSubstr("one block"));
}

TEST_F(CheckedTest, DevicesAndMissingTensors) {
  float host[4] = {};
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.fill({.dst = host_tensor(host, {4})}, s); }),
              HasSubstr("dst is on cpu:0, the kernels on dry:0"));
  EXPECT_THAT(
      refusal([&](Kernels& k, Stream& s) { k.fill({.dst = {.data = nullptr, .shape = {4}}}, s); }),
      HasSubstr("dst is missing"));
  EXPECT_NO_THROW(kernels().fill({.dst = {.data = nullptr, .shape = {0}}}, stream()));
}

TEST_F(CheckedTest, CopyAndAdd) {
  const Tensor x = f32({8});
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.copy({.src = x, .dst = f32({7})}, s); }),
              HasSubstr("differ in size"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.copy({.src = x, .dst = i32({8})}, s); }),
              HasSubstr("dtypes differ"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.copy({.src = x.rows(0, 4), .dst = x.rows(2, 4)}, s);
              }),
              HasSubstr("overlaps"));
  EXPECT_NO_THROW(kernels().add({.a = x, .b = f32({8}), .out = x}, stream()));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.add({.a = x.rows(0, 4), .b = f32({4}), .out = x.rows(1, 4)}, s);
              }),
              HasSubstr("out overlaps a without being the same tensor"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.add({.a = x, .b = bf16({8}), .out = x}, s); }),
              HasSubstr("b is bf16"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.fill({.dst = take(DType::kU8, {4})}, s); }),
              HasSubstr("neither"));
}

TEST_F(CheckedTest, NormAndActivation) {
  const Tensor x = bf16({4, 6});
  const RmsNormForwardArgs forward{
      .x = x, .weight = bf16({6}), .y = bf16({4, 6}), .rstd = f32({4})};
  EXPECT_NO_THROW(kernels().rmsnorm_forward(forward, stream()));
  const auto norm = [&](auto change) {
    RmsNormForwardArgs args = forward;
    change(args);
    return refusal([&](Kernels& k, Stream& s) { k.rmsnorm_forward(args, s); });
  };
  EXPECT_THAT(norm([&](auto& a) { a.weight = f32({6}); }), HasSubstr("weight is f32"));
  EXPECT_THAT(norm([&](auto& a) { a.rstd = f32({5}); }), HasSubstr("rstd is f32 (5)"));
  EXPECT_THAT(norm([&](auto& a) { a.y = a.x; }), HasSubstr("y overlaps x"));
  RmsNormForwardArgs of_sum = forward;
  of_sum.residual = of_sum.sum = bf16({4, 6});
  EXPECT_NO_THROW(kernels().rmsnorm_forward(of_sum, stream()));
  of_sum.sum = x;
  EXPECT_NO_THROW(kernels().rmsnorm_forward(of_sum, stream()));
  EXPECT_THAT(norm([&](auto& a) { a.residual = x; }), HasSubstr("come together"));
  EXPECT_THAT(norm([&](auto& a) {
                a.residual = bf16({4, 5});
                a.sum = x;
              }),
              HasSubstr("residual is bf16 (4, 5)"));
  EXPECT_THAT(norm([&](auto& a) {
                a.residual = bf16({4, 6});
                a.sum = a.y;
              }),
              HasSubstr("sum overlaps y"));

  const RmsNormBackwardArgs backward{.x = x,
                                     .weight = forward.weight,
                                     .rstd = forward.rstd,
                                     .dy = forward.y,
                                     .dx = forward.y,
                                     .dweight = f32({6})};
  EXPECT_NO_THROW(kernels().rmsnorm_backward(backward, stream()));
  RmsNormBackwardArgs bad = backward;
  bad.dx = x;
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.rmsnorm_backward(bad, s); }),
              HasSubstr("dx overlaps x"));
  bad = backward;
  bad.dweight = bf16({6});
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.rmsnorm_backward(bad, s); }),
              HasSubstr("dweight is bf16"));

  const Tensor gate = f32({2, 4}), up = f32({2, 4}), dout = f32({2, 4});
  EXPECT_NO_THROW(kernels().swiglu_backward(
      {.gate = gate, .up = up, .dout = dout, .dgate = gate, .dup = dout}, stream()));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.swiglu_backward({.gate = gate, .up = up, .dout = dout, .dgate = up, .dup = up},
                                  s);
              }),
              HasSubstr("dgate overlaps dup"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.swiglu_forward({.gate = gate, .up = up, .out = f32({4, 2})}, s);
              }),
              HasSubstr("out is f32 (4, 2)"));
}

TEST_F(CheckedTest, TokenOperations) {
  EXPECT_THAT(
      refusal([&](Kernels& k, Stream& s) {
        k.rope_table(
            {.positions = i32({4}), .inv_freq = f32({2}), .cos = f32({4, 2}), .sin = f32({4, 2})},
            s);
      }),
      HasSubstr("inv_freq is f32 (2), expected f64 (2)"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.rope_table({.positions = i32({4}),
                              .inv_freq = take(DType::kF64, {3, 2}),
                              .cos = f32({4, 2}),
                              .sin = f32({4, 2}),
                              .table_ids = i32({3})},
                             s);
              }),
              HasSubstr("table_ids is i32 (3), expected i32 (4)"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.rope_apply({.x = f32({4, 1, 3}), .cos = f32({4, 1}), .sin = f32({4, 1})}, s);
              }),
              HasSubstr("odd"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.rope_apply({.x = f32({4, 1, 4}), .cos = f32({4, 1}), .sin = f32({4, 2})}, s);
              }),
              HasSubstr("cos is"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.embedding_forward(
                    {.ids = take(DType::kI64, {3}), .table = f32({5, 2}), .out = f32({3, 2})}, s);
              }),
              HasSubstr("ids is i64"));
  EXPECT_THAT(
      refusal([&](Kernels& k, Stream& s) {
        k.embedding_backward({.ids = i32({3}), .dout = bf16({3, 2}), .dtable = bf16({5, 2})}, s);
      }),
      HasSubstr("dtable is bf16"));
  const Tensor logits = f32({3, 5});
  const CrossEntropyArgs loss{.logits = logits,
                              .labels = i32({3}),
                              .dlogits = logits,
                              .loss_sum = f64({1}),
                              .valid_count = f64({1})};
  EXPECT_NO_THROW(kernels().cross_entropy(loss, stream()));
  CrossEntropyArgs bad = loss;
  bad.dlogits = {
      .data = logits.data, .dtype = DType::kBF16, .shape = {3, 5}, .device = logits.device};
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.cross_entropy(bad, s); }),
              HasSubstr("dlogits overlaps logits without"));
  bad = loss;
  bad.labels = i32({2});
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.cross_entropy(bad, s); }),
              HasSubstr("labels is"));
}

TEST_F(CheckedTest, Optimizer) {
  EXPECT_THAT(
      refusal([&](Kernels& k, Stream& s) { k.squared_norm({.x = bf16({4}), .sum = f64({1})}, s); }),
      HasSubstr("x is bf16"));
  const AdamWArgs good{.master = f32({4}),
                       .m = f32({4}),
                       .v = f32({4}),
                       .grad = f32({4}),
                       .working = bf16({4}),
                       .grad_scale = f32({1}),
                       .skip = i32({1}),
                       .applied_steps = take(DType::kI64, {1})};
  EXPECT_NO_THROW(kernels().adamw(good, stream()));
  AdamWArgs bad = good;
  bad.working = f32({4});
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.adamw(bad, s); }),
              HasSubstr("working is f32"));
  bad = good;
  bad.v = bad.m;
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.adamw(bad, s); }), HasSubstr("m overlaps v"));
  ClipArgs clip{.sum_squares = f64({1}),
                .loss_sum = f64({1}),
                .valid_count = f64({1}),
                .grad_scale = f32({1}),
                .grad_norm = f64({1}),
                .skip = i32({1}),
                .applied_steps = take(DType::kI64, {1}),
                .skipped_steps = take(DType::kI64, {1})};
  EXPECT_NO_THROW(kernels().clip(clip, stream()));
  clip.max_norm = -1;
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.clip(clip, s); }), HasSubstr("negative"));
}

TEST_F(CheckedTest, Attention) {
  const AttentionSlice slice{.q_len = 4, .k_len = 6};
  const AttentionForwardArgs good{.q = f32({4, 4, 8}),
                                  .k = f32({6, 2, 8}),
                                  .v = f32({6, 2, 8}),
                                  .acc = f32({4, 4, 8}),
                                  .row_max = f32({4, 4}),
                                  .row_sum = f32({4, 4}),
                                  .slices = {&slice, 1},
                                  .first = true};
  EXPECT_NO_THROW(kernels().attention_forward(good, stream()));
  const auto message = [&](auto change) {
    AttentionForwardArgs args = good;
    change(args);
    return refusal([&](Kernels& k, Stream& s) { k.attention_forward(args, s); });
  };
  EXPECT_THAT(message([&](auto& a) { a.last = true; }), HasSubstr("out is"));
  EXPECT_THAT(message([&](auto& a) { a.k = a.v = f32({6, 3, 8}); }), HasSubstr("do not divide"));
  EXPECT_THAT(message([&](auto& a) { a.v = f32({6, 2, 7}); }), HasSubstr("v is"));
  EXPECT_THAT(message([&](auto& a) { a.acc = bf16({4, 4, 8}); }), HasSubstr("acc is bf16"));
  AttentionSlice outside{.q_begin = 1, .q_len = 4, .k_len = 6};
  EXPECT_THAT(message([&](auto& a) { a.slices = {&outside, 1}; }), HasSubstr("does not fit"));
  outside = {.q_len = 4, .k_len = 6, .kind = MaskKind::kBand};
  EXPECT_THAT(message([&](auto& a) { a.slices = {&outside, 1}; }), HasSubstr("window 0"));
  for (const HeadRange range : {HeadRange{-1, 1}, HeadRange{2, 3}, HeadRange{1, 1}}) {
    outside = {.q_len = 4, .k_len = 6, .kv_heads = range};
    EXPECT_THAT(message([&](auto& a) { a.slices = {&outside, 1}; }), HasSubstr("KV heads"));
  }

  AttentionBackwardArgs backward{.q = good.q,
                                 .k = good.k,
                                 .v = good.v,
                                 .dout = f32({4, 4, 8}),
                                 .lse = f32({4, 4}),
                                 .delta = f32({4, 4}),
                                 .dq = f32({4, 4, 8}),
                                 .dk = f32({6, 2, 8}),
                                 .dv = f32({6, 2, 8}),
                                 .slices = {&slice, 1}};
  EXPECT_NO_THROW(kernels().attention_backward(backward, stream()));
  backward.out = f32({4, 2, 8});
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.attention_backward(backward, s); }),
              HasSubstr("out is"));
  backward.out = f32({4, 4, 8});
  EXPECT_NO_THROW(kernels().attention_backward(backward, stream()));
  backward.dv = backward.dk;
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) { k.attention_backward(backward, s); }),
              HasSubstr("dk overlaps dv"));
  EXPECT_THAT(refusal([&](Kernels& k, Stream& s) {
                k.attention_delta({.out = good.q, .dout = good.acc, .delta = f32({4, 5})}, s);
              }),
              HasSubstr("delta is"));
}

TEST_F(CheckedTest, AttentionBias) {
  // Row 0 sees the last of 6 keys; so far ahead may a key lie under ALiBi, but not under xPos.
  AttentionSlice slice{.q_len = 4, .k_len = 6, .position_diagonal = 9};
  AttentionForwardArgs args{.q = f32({4, 4, 8}),
                            .k = f32({6, 2, 8}),
                            .v = f32({6, 2, 8}),
                            .acc = f32({4, 4, 8}),
                            .row_max = f32({4, 4}),
                            .row_sum = f32({4, 4}),
                            .slices = {&slice, 1},
                            .bias = {.slopes = f32({4}), .position_stride = 2},
                            .first = true};
  const auto run = [&](Kernels& k, Stream& s) { k.attention_forward(args, s); };
  EXPECT_NO_THROW(run(kernels(), stream()));
  args.bias.decay = f32({4});
  EXPECT_THAT(refusal(run), HasSubstr("keys 1 positions after a query"));
  slice.kind = MaskKind::kInverseCausal;
  slice.window = 100;
  EXPECT_THAT(refusal(run), HasSubstr("keys 1 positions after a query"));
  slice.kind = MaskKind::kCausal;
  slice.diagonal = 4;
  EXPECT_NO_THROW(run(kernels(), stream()));
  slice.position_diagonal = 7;
  EXPECT_THAT(refusal(run), HasSubstr("keys 1 positions after a query"));
  slice.position_diagonal = 8;
  EXPECT_NO_THROW(run(kernels(), stream()));
  args.bias.position_stride = 0;
  EXPECT_THAT(refusal(run), HasSubstr("stride"));
  args.bias.position_stride = 2;
  args.bias.decay = f32({8});
  EXPECT_THAT(refusal(run), HasSubstr("decay is"));
  args.bias.slopes = f32({2});
  EXPECT_THAT(refusal(run), HasSubstr("slopes is"));
  args.bias = {.decay = f32({3})};
  args.q = f32({4, 4, 7});
  args.k = args.v = f32({6, 2, 7});
  args.acc = f32({4, 4, 7});
  EXPECT_THAT(refusal(run), HasSubstr("even head dimension"));
}

TEST_F(CheckedTest, Copy2d) {
  const Copy2dArgs good{.src = f32({4, 10}),
                        .dst = f32({4, 3}),
                        .rows = 4,
                        .cols = 3,
                        .src_begin = 7,
                        .src_stride = 10,
                        .dst_stride = 3};
  EXPECT_NO_THROW(kernels().copy_2d(good, stream()));
  const auto message = [&](auto change) {
    Copy2dArgs args = good;
    change(args);
    return refusal([&](Kernels& k, Stream& s) { k.copy_2d(args, s); });
  };
  EXPECT_THAT(message([](auto& a) { a.src_begin = 8; }), HasSubstr("do not fit src f32 (4, 10)"));
  EXPECT_THAT(message([](auto& a) { a.src_begin = -1; }), HasSubstr("do not fit src"));
  EXPECT_THAT(message([](auto& a) { a.rows = 5; }), HasSubstr("do not fit"));
  EXPECT_THAT(message([](auto& a) { a.rows = -1; }), HasSubstr("negative"));
  EXPECT_THAT(message([](auto& a) { a.dst_stride = 2; }), HasSubstr("rows of dst overlap"));
  EXPECT_THAT(message([&](auto& a) { a.dst = i32({4, 3}); }), HasSubstr("dtypes differ"));
  EXPECT_THAT(message([&](auto& a) {
                a.dst = bf16({4, 3});
                a.mode = GradMode::kAccumulate;
              }),
              HasSubstr("dst of f32 or i64"));
  EXPECT_THAT(message([&](auto& a) { a.dst = a.src; }), HasSubstr("dst overlaps src"));
  Copy2dArgs within = good;  // apart inside one tensor: rows 0 and 1 to rows 2 and 3
  within.rows = 2;
  within.src_begin = 0;
  within.dst = good.src;
  within.dst_begin = 20;
  within.dst_stride = 10;
  EXPECT_NO_THROW(kernels().copy_2d(within, stream()));
}

TEST_F(CheckedTest, ExactSums) {
  const ExactSum sum{take(DType::kI64, {12}), take(DType::kI64, {12}), take(DType::kI64, {1})};
  EXPECT_NO_THROW(kernels().exact_add({.src = bf16({3, 4}), .sum = sum}, stream()));
  EXPECT_NO_THROW(kernels().exact_add({.src = f64({7, 4}), .ids = i32({7}), .sum = sum}, stream()));
  EXPECT_NO_THROW(kernels().exact_read({.sum = sum, .dst = f64({3, 4})}, stream()));
  const auto add = [&](const ExactAddArgs& args) {
    return refusal([&](Kernels& k, Stream& s) { k.exact_add(args, s); });
  };
  const auto read = [&](const ExactReadArgs& args) {
    return refusal([&](Kernels& k, Stream& s) { k.exact_read(args, s); });
  };
  EXPECT_THAT(add({.src = i32({12}), .sum = sum}), HasSubstr("src is neither"));
  EXPECT_THAT(add({.src = f32({11}), .sum = sum}), HasSubstr("differ in size"));
  EXPECT_THAT(add({.src = f32({7, 5}), .ids = i32({7}), .sum = sum}), HasSubstr("made of rows"));
  EXPECT_THAT(add({.src = f32({7, 4}), .ids = i32({6}), .sum = sum}), HasSubstr("ids is"));
  EXPECT_THAT(add({.src = f32({12}), .sum = {sum.high, sum.high, sum.invalid}}),
              HasSubstr("high overlaps low"));
  EXPECT_THAT(add({.src = f32({12}), .sum = {sum.high, f64({12}), sum.invalid}}),
              HasSubstr("low is f64"));
  const auto matmul = [&](const ExactMatmulArgs& args) {
    return refusal([&](Kernels& k, Stream& s) { k.exact_matmul(args, s); });
  };
  const std::int64_t blocks[] = {0, 2, 5}, short_of[] = {0, 2};
  const ExactMatmulArgs product{
      .a = f32({5, 3}), .b = f32({5, 4}), .row_blocks = blocks, .sum = sum};
  EXPECT_NO_THROW(kernels().exact_matmul(product, stream()));
  ExactMatmulArgs bad = product;
  bad.row_blocks = short_of;
  EXPECT_THAT(matmul(bad), HasSubstr("row_blocks"));
  bad = product;
  bad.b = f32({5, 5});
  EXPECT_THAT(matmul(bad), HasSubstr("product's size"));
  bad.b = f32({4, 4});
  EXPECT_THAT(matmul(bad), HasSubstr("b is"));
  EXPECT_THAT(read({.sum = sum, .dst = bf16({12})}), HasSubstr("dst is neither"));
  EXPECT_THAT(read({.sum = sum, .dst = f32({13})}), HasSubstr("differ in size"));
}

}  // namespace
}  // namespace farspan
