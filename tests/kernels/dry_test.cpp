// What the dry backend counts, and that it touches no memory (its device's pages cannot be read).
#include <gtest/gtest.h>

#include <optional>

#include "core/arena.h"
#include "core/rng.h"
#include "kernels/backend.h"
#include "kernels/visible_pairs.h"

namespace farspan {
namespace {

std::int64_t count_pairs_one_by_one(const AttentionSlice& s) {
  std::int64_t pairs = 0;
  for (std::int64_t i = 0; i < s.q_len; ++i)
    for (std::int64_t j = 0; j < s.k_len; ++j) {
      const std::int64_t delta = i - j + s.diagonal;
      const bool causal = s.kind == MaskKind::kCausal || s.kind == MaskKind::kBand;
      const bool windowed = s.kind == MaskKind::kInverseCausal || s.kind == MaskKind::kBand;
      pairs += (!causal || delta >= 0) && (!windowed || delta < s.window);
    }
  return pairs;
}

TEST(VisiblePairs, ClosedFormEqualsCounting) {
  const CounterRng rng(1, stream_id("test.slices"));
  for (std::uint64_t i = 0; i < 20000; ++i) {
    const auto draw = [&](std::uint64_t which, std::uint64_t bound) {
      return static_cast<std::int64_t>(rng.below(i * 8 + which, bound));
    };
    const AttentionSlice s{.q_len = draw(0, 12),
                           .k_len = draw(1, 12),
                           .kind = static_cast<MaskKind>(draw(2, 4)),
                           .diagonal = draw(3, 50) - 25,
                           .window = draw(4, 20) + 1};
    ASSERT_EQ(visible_pairs(s), count_pairs_one_by_one(s))
        << "q " << s.q_len << " k " << s.k_len << " kind " << static_cast<int>(s.kind)
        << " diagonal " << s.diagonal << " window " << s.window;
  }
}

TEST(VisiblePairs, LongSequencesDoNotOverflow) {
  const std::int64_t n = 1 << 20;
  EXPECT_EQ(visible_pairs({.q_len = n, .k_len = n, .kind = MaskKind::kCausal}), n * (n + 1) / 2);
}

class DryBackendTest : public ::testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend({.kind = DeviceKind::kDry});
  Arena arena_{backend_->device(), kDryCapacity, "dry"};
  Tensor take(DType dtype, Shape shape) { return arena_.take(dtype, shape, "t"); }
};

TEST_F(DryBackendTest, CountsMatmul) {
  Kernels& k = backend_->kernels();
  const Tensor a = take(DType::kBF16, {64, 100});
  const Tensor b = take(DType::kBF16, {32, 100});
  k.matmul({.a = a, .b = b, .out = take(DType::kBF16, {64, 32}), .trans_b = true},
           backend_->stream());
  EXPECT_EQ(backend_->work().matmul_flops, 2.0 * 64 * 32 * 100);
  EXPECT_EQ(backend_->work().bytes, 2.0 * (64 * 100 + 32 * 100 + 64 * 32));
  EXPECT_EQ(backend_->work().calls, 1);
  k.matmul({.a = a,
            .b = b,
            .out = take(DType::kF32, {64, 32}),
            .trans_b = true,
            .mode = GradMode::kAccumulate},
           backend_->stream());
  EXPECT_EQ(backend_->work().matmul_flops, 4.0 * 64 * 32 * 100);
  EXPECT_EQ(backend_->work().bytes, 4.0 * (64 * 100 + 32 * 100) + (2 + 8) * 64 * 32);
  backend_->reset_work();
  EXPECT_EQ(backend_->work().calls, 0);
}

TEST_F(DryBackendTest, CountsVisiblePairsOfAttention) {
  const std::int64_t t = 1000, heads = 4, kv_heads = 2, d = 32;
  const Tensor q = take(DType::kBF16, {t, heads, d});
  const Tensor k = take(DType::kBF16, {t, kv_heads, d});
  const Tensor v = take(DType::kBF16, {t, kv_heads, d});
  const Tensor rows = take(DType::kF32, {heads, t});
  const AttentionSlice slices[] = {
      {.q_len = 400, .k_len = 400, .kind = MaskKind::kCausal},
      {.q_begin = 400, .q_len = 600, .k_begin = 400, .k_len = 600, .kind = MaskKind::kCausal}};
  const double pairs = 400.0 * 401 / 2 + 600.0 * 601 / 2;
  backend_->kernels().attention_forward({.q = q,
                                         .k = k,
                                         .v = v,
                                         .acc = take(DType::kF32, {t, heads, d}),
                                         .row_max = rows,
                                         .row_sum = take(DType::kF32, {heads, t}),
                                         .slices = slices,
                                         .first = true},
                                        backend_->stream());
  EXPECT_EQ(backend_->work().attention_forward_flops, 4 * 32 * 4 * pairs);
  backend_->kernels().attention_backward({.q = q,
                                          .k = k,
                                          .v = v,
                                          .dout = take(DType::kBF16, {t, heads, d}),
                                          .lse = rows,
                                          .delta = rows,
                                          .dq = take(DType::kF32, {t, heads, d}),
                                          .dk = take(DType::kF32, {t, kv_heads, d}),
                                          .dv = take(DType::kF32, {t, kv_heads, d}),
                                          .slices = slices},
                                         backend_->stream());
  EXPECT_EQ(backend_->work().attention_backward_flops, 10 * 32 * 4 * pairs);
}

TEST(VisiblePairs, WeighASliceByItsShareOfTheHeads) {
  AttentionSlice s{.q_len = 4, .k_len = 4, .kind = MaskKind::kCausal};
  EXPECT_EQ(visible_pairs(s, 3), 10);
  s.kv_heads = {.begin = 1, .end = 3};
  EXPECT_EQ(visible_pairs(s, 4), 5);
  EXPECT_EQ(visible_pairs(s, 2), 5);
  EXPECT_EQ(visible_pairs(s, 1), 0);
}

TEST(VisiblePairs, ShortestDistanceIsThatOfSomePair) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const CounterRng rng(seed, stream_id("distances"));
    std::uint64_t n = 0;
    const auto draw = [&](std::int64_t low, std::int64_t high) {
      return low +
             static_cast<std::int64_t>(rng.below(n++, static_cast<std::uint64_t>(high - low + 1)));
    };
    const AttentionSlice s{.q_len = draw(1, 9),
                           .k_len = draw(1, 9),
                           .kind = static_cast<MaskKind>(draw(0, 3)),
                           .diagonal = draw(-10, 10),
                           .window = draw(1, 8),
                           .position_diagonal = draw(-5, 5)};
    const std::int64_t stride = draw(1, 3);
    std::optional<std::int64_t> shortest;
    for (std::int64_t i = 0; i < s.q_len; ++i)
      for (std::int64_t j = 0; j < s.k_len; ++j) {
        const std::int64_t p = (i - j) * stride + s.position_diagonal;
        const AttentionSlice one{.q_len = 1,
                                 .k_len = 1,
                                 .kind = s.kind,
                                 .diagonal = s.diagonal + i - j,
                                 .window = s.window};
        if (visible_pairs(one) == 1) shortest = std::min(shortest.value_or(p), p);
      }
    if (!shortest) continue;  // nothing is visible
    ASSERT_EQ(shortest_distance(s, stride), *shortest) << "seed " << seed;
  }
}

TEST_F(DryBackendTest, CountsAttentionOfSomeHeads) {
  const Tensor q = take(DType::kF32, {8, 4, 16}), k = take(DType::kF32, {8, 2, 16});
  const AttentionSlice slices[] = {{.q_len = 8, .k_len = 8},
                                   {.q_len = 8, .k_len = 2, .kv_heads = {.begin = 1}}};
  backend_->kernels().attention_forward({.q = q,
                                         .k = k,
                                         .v = take(DType::kF32, {8, 2, 16}),
                                         .acc = take(DType::kF32, {8, 4, 16}),
                                         .row_max = take(DType::kF32, {4, 8}),
                                         .row_sum = take(DType::kF32, {4, 8}),
                                         .slices = slices,
                                         .first = true},
                                        backend_->stream());
  EXPECT_EQ(backend_->work().attention_forward_flops, 4 * 16 * (4 * 64 + 2 * 16));
}

TEST_F(DryBackendTest, ChecksShapesToo) {
  EXPECT_THROW(
      backend_->kernels().add(
          {.a = take(DType::kF32, {4}), .b = take(DType::kF32, {5}), .out = take(DType::kF32, {4})},
          backend_->stream()),
      InternalError);
}

TEST_F(DryBackendTest, EveryOtherOperationTouchesNothing) {
  Kernels& k = backend_->kernels();
  Stream& s = backend_->stream();
  const Tensor x = take(DType::kF32, {6, 8}), y = take(DType::kF32, {6, 8});
  const Tensor z = take(DType::kF32, {6, 8}), rstd = take(DType::kF32, {6});
  const Tensor weight = take(DType::kF32, {8}), ids = take(DType::kI32, {6});
  const Tensor one = take(DType::kF64, {1}), two = take(DType::kF64, {1});
  k.copy({.src = x, .dst = y}, s);
  k.fill({.dst = x, .value = 1}, s);
  k.rmsnorm_forward({.x = x, .weight = weight, .y = y, .rstd = rstd}, s);
  k.rmsnorm_forward({.x = x, .weight = weight, .y = y, .rstd = rstd, .residual = z, .sum = z}, s);
  k.rmsnorm_backward(
      {.x = x, .weight = weight, .rstd = rstd, .dy = y, .dx = y, .dweight = take(DType::kF32, {8})},
      s);
  const Tensor cos = take(DType::kF32, {6, 4}), sin = take(DType::kF32, {6, 4});
  k.rope_table({.positions = ids, .inv_freq = take(DType::kF64, {4}), .cos = cos, .sin = sin}, s);
  k.rope_apply({.x = x.view({6, 1, 8}), .cos = cos, .sin = sin}, s);
  k.swiglu_forward({.gate = x, .up = y, .out = z}, s);
  k.swiglu_backward({.gate = x, .up = y, .dout = z, .dgate = x, .dup = z}, s);
  k.embedding_forward({.ids = ids, .table = take(DType::kF32, {9, 8}), .out = x}, s);
  k.embedding_backward({.ids = ids, .dout = x, .dtable = take(DType::kF32, {9, 8})}, s);
  k.cross_entropy({.logits = x, .labels = ids, .loss_sum = one, .valid_count = two}, s);
  k.squared_norm({.x = weight, .sum = one}, s);
  const Tensor scale = take(DType::kF32, {1}), skip = take(DType::kI32, {1});
  const Tensor applied = take(DType::kI64, {1});
  k.clip({.sum_squares = one,
          .loss_sum = one,
          .valid_count = two,
          .grad_scale = scale,
          .grad_norm = take(DType::kF64, {1}),
          .skip = skip,
          .applied_steps = applied,
          .skipped_steps = take(DType::kI64, {1})},
         s);
  k.adamw({.master = x,
           .m = y,
           .v = z,
           .grad = take(DType::kF32, {6, 8}),
           .grad_scale = scale,
           .skip = skip,
           .applied_steps = applied},
          s);
  const Tensor delta = take(DType::kF32, {1, 6});
  k.attention_delta({.out = x.view({6, 1, 8}), .dout = y.view({6, 1, 8}), .delta = delta}, s);
  EXPECT_EQ(backend_->work().calls, 16);
  EXPECT_GT(backend_->work().bytes, 15 * 48);
}

TEST_F(DryBackendTest, CountsCopiesAndExactSums) {
  Kernels& k = backend_->kernels();
  Stream& s = backend_->stream();
  const auto bytes = [&] {
    const double moved = backend_->work().bytes;
    backend_->reset_work();
    return moved;
  };
  Copy2dArgs part{.src = take(DType::kBF16, {5, 8}),
                  .dst = take(DType::kF32, {5, 3}),
                  .rows = 5,
                  .cols = 3,
                  .src_begin = 2,
                  .src_stride = 8,
                  .dst_stride = 3};
  k.copy_2d(part, s);
  EXPECT_EQ(bytes(), 15 * (2 + 4));
  part.mode = GradMode::kAccumulate;
  k.copy_2d(part, s);
  EXPECT_EQ(bytes(), 15 * (2 + 8));
  const ExactSum sum{take(DType::kI64, {40, 8}), take(DType::kI64, {40, 8}),
                     take(DType::kI64, {1})};
  k.exact_add({.src = take(DType::kF32, {40, 8}), .sum = sum}, s);
  EXPECT_EQ(bytes(), 320 * (4 + 32));
  k.exact_add({.src = take(DType::kBF16, {6, 8}), .ids = take(DType::kI32, {6}), .sum = sum}, s);
  EXPECT_EQ(bytes(), 48 * (2 + 32) + 6 * 4) << "the rows touched, not the whole sum";
  const std::int64_t blocks[] = {0, 4, 6};
  k.exact_matmul({.a = take(DType::kBF16, {6, 40}),
                  .b = take(DType::kBF16, {6, 8}),
                  .row_blocks = blocks,
                  .sum = sum},
                 s);
  EXPECT_EQ(backend_->work().matmul_flops, 2.0 * 6 * 40 * 8);
  EXPECT_EQ(bytes(), 2 * 6 * 48 + 320 * 32);
  const Tensor dst = take(DType::kF32, {320});
  k.exact_read({.sum = sum, .dst = dst}, s);
  EXPECT_EQ(bytes(), 320 * (16 + 4));
  k.exact_read({.sum = sum, .dst = dst, .mode = GradMode::kAccumulate}, s);
  EXPECT_EQ(bytes(), 320 * (16 + 8));
}

}  // namespace
}  // namespace farspan
