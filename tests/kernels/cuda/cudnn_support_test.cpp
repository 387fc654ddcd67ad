// Which calls cuDNN is given, and the reason for every one that it is not. No GPU.
#include "kernels/cudnn_support.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace farspan::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr CudnnFacts kHopper{.absent = {}, .version = 91900, .capability = 90};
using Slices = std::vector<AttentionSlice>;

// Addresses that nothing reads.
Tensor at(std::uintptr_t address, DType dtype, Shape shape) {
  return {reinterpret_cast<std::byte*>(address), dtype, shape, {DeviceKind::kCuda, 0}};
}

AttentionForwardArgs forward_args(const Slices& slices, std::int64_t num_q, std::int64_t num_k,
                                  std::int64_t head_dim = 128) {
  const Shape q{num_q, 8, head_dim}, k{num_k, 2, head_dim}, stats{8, num_q};
  return {.q = at(1 << 20, DType::kBF16, q),
          .k = at(2 << 20, DType::kBF16, k),
          .v = at(3 << 20, DType::kBF16, k),
          .acc = at(4 << 20, DType::kF32, q),
          .row_max = at(5 << 20, DType::kF32, stats),
          .row_sum = at(6 << 20, DType::kF32, stats),
          .slices = slices,
          .scale = 0.125f,
          .first = true,
          .last = true,
          .out = at(7 << 20, DType::kBF16, q),
          .lse = at(8 << 20, DType::kF32, stats)};
}

AttentionBackwardArgs backward_args(const Slices& slices, std::int64_t num_q, std::int64_t num_k,
                                    std::int64_t head_dim = 128) {
  const AttentionForwardArgs f = forward_args(slices, num_q, num_k, head_dim);
  return {.q = f.q,
          .k = f.k,
          .v = f.v,
          .dout = at(9 << 20, DType::kBF16, f.q.shape),
          .lse = f.lse,
          .delta = f.row_sum,
          .dq = at(10 << 20, DType::kF32, f.q.shape),
          .dk = at(11 << 20, DType::kF32, f.k.shape),
          .dv = at(12 << 20, DType::kF32, f.k.shape),
          .slices = slices,
          .scale = f.scale,
          .deterministic = false,
          .out = f.out};
}

AttentionSlice causal(std::int64_t q, std::int64_t k, std::int64_t length,
                      std::int64_t diagonal = 0) {
  return {.q_begin = q,
          .q_len = length,
          .k_begin = k,
          .k_len = length + diagonal,
          .kind = MaskKind::kCausal,
          .diagonal = diagonal};
}

CudnnAnswer forward(const Slices& slices, std::int64_t num_q, std::int64_t num_k) {
  return cudnn_forward_support(forward_args(slices, num_q, num_k), kHopper);
}

std::string forward_refusal(const Slices& slices, std::int64_t num_q = 2048,
                            std::int64_t num_k = 2048) {
  return forward(slices, num_q, num_k).refusal;
}

TEST(CudnnPieces, OneCausalSequenceIsOneCall) {
  const CudnnAnswer a = forward({causal(0, 0, 1000)}, 1000, 1000);
  EXPECT_EQ(a.refusal, "");
  EXPECT_TRUE(a.whole);
  EXPECT_TRUE(a.covers_all_rows);
  EXPECT_THAT(a.pieces, ElementsAre(CudnnPiece{.q_len = 1000,
                                               .k_len = 1000,
                                               .q_step = 1000,
                                               .k_step = 1000,
                                               .mask = CudnnMask::kCausal}));
}

TEST(CudnnPieces, EqualSequencesAreABatch) {
  const CudnnAnswer a =
      forward({causal(0, 0, 512), causal(512, 512, 512), causal(1024, 1024, 512)}, 1536, 1536);
  ASSERT_EQ(a.refusal, "");
  EXPECT_TRUE(a.whole);
  EXPECT_THAT(a.pieces, ElementsAre(CudnnPiece{.q_len = 512,
                                               .k_len = 512,
                                               .batch = 3,
                                               .q_step = 512,
                                               .k_step = 512,
                                               .mask = CudnnMask::kCausal}));
}

TEST(CudnnPieces, DocumentsOfTwoLengthsAreTwoCalls) {
  const CudnnAnswer a = forward({causal(0, 0, 512), causal(512, 512, 1024)}, 1536, 1536);
  ASSERT_EQ(a.refusal, "");
  EXPECT_EQ(a.pieces.size(), 2u);
  EXPECT_TRUE(a.whole);
}

// A rank of a causal zigzag ring, chunks a and b of 256 rows: its own rows, those of a rank before
// it in both, and those of a rank whose first chunk alone is earlier.
TEST(CudnnPieces, ZigzagHopsAreOneCallEach) {
  const AttentionSlice b_sees_a{.q_begin = 256, .q_len = 256, .k_len = 256};
  const CudnnAnswer own = forward({causal(0, 0, 256), b_sees_a, causal(256, 256, 256)}, 512, 512);
  ASSERT_EQ(own.refusal, "");
  EXPECT_THAT(
      own.pieces,
      ElementsAre(CudnnPiece{
          .q_len = 512, .k_len = 512, .q_step = 512, .k_step = 512, .mask = CudnnMask::kCausal}));
  AttentionSlice a_sees = b_sees_a;
  a_sees.q_begin = 0;
  const CudnnAnswer before = forward({a_sees, b_sees_a}, 512, 512);
  ASSERT_EQ(before.refusal, "");
  EXPECT_THAT(before.pieces,
              ElementsAre(CudnnPiece{.q_len = 512, .k_len = 256, .q_step = 512, .k_step = 256}));
  EXPECT_TRUE(before.covers_all_rows);
  AttentionSlice b_sees_b = b_sees_a;
  b_sees_b.k_begin = 256;
  const CudnnAnswer after = forward({b_sees_a, b_sees_b}, 512, 512);
  ASSERT_EQ(after.refusal, "");
  EXPECT_THAT(after.pieces,
              ElementsAre(CudnnPiece{
                  .q_begin = 256, .q_len = 256, .k_len = 512, .q_step = 256, .k_step = 512}));
  EXPECT_FALSE(after.covers_all_rows);
}

TEST(CudnnPieces, KeysBeforeTheRowsAreBottomRight) {
  const CudnnAnswer a = forward({causal(0, 0, 512, 1024)}, 512, 2048);
  ASSERT_EQ(a.refusal, "");
  EXPECT_EQ(a.pieces[0].mask, CudnnMask::kCausalToEnd);
  EXPECT_EQ(a.pieces[0].k_len, 1536);
  // Keys beyond the last row's are left out.
  AttentionSlice wide = causal(0, 0, 512);
  wide.k_len = 2048;
  const CudnnAnswer b = forward({wide}, 512, 2048);
  EXPECT_EQ(b.pieces[0].mask, CudnnMask::kCausal);
  EXPECT_EQ(b.pieces[0].k_len, 512);
}

TEST(CudnnPieces, Windows) {
  AttentionSlice band = causal(0, 0, 2048);
  band.kind = MaskKind::kBand;
  band.window = 256;
  const CudnnAnswer a = forward({band}, 2048, 2048);
  ASSERT_EQ(a.refusal, "");
  EXPECT_EQ(a.pieces[0].window, 256);
  EXPECT_EQ(a.pieces[0].mask, CudnnMask::kCausal);
  band.window = 2048;  // no row is that far from the first key
  EXPECT_EQ(forward({band}, 2048, 2048).pieces[0].window, 0);
}

TEST(CudnnPieces, MasksThatHideNothingAreFull) {
  AttentionSlice all = causal(0, 0, 512, 511);
  all.k_len = 512;
  EXPECT_EQ(forward({all}, 512, 512).pieces[0].mask, CudnnMask::kFull);
  const AttentionSlice inverse{
      .q_len = 512, .k_len = 512, .kind = MaskKind::kInverseCausal, .window = 512};
  EXPECT_EQ(forward({inverse}, 512, 512).pieces[0].mask, CudnnMask::kFull);
}

TEST(CudnnPieces, OnARingResultsAreMerged) {
  const Slices slices{causal(0, 0, 512)};
  AttentionForwardArgs args = forward_args(slices, 512, 512);
  args.last = false;
  EXPECT_FALSE(cudnn_forward_support(args, kHopper).whole);
  // Rows in two pieces: one call's output cannot be the result.
  const AttentionSlice far{.q_len = 512, .k_begin = 1024, .k_len = 512};
  const CudnnAnswer twice = forward({causal(0, 0, 512), far}, 512, 2048);
  ASSERT_EQ(twice.refusal, "");
  EXPECT_EQ(twice.pieces.size(), 2u);
  EXPECT_FALSE(twice.whole);
}

TEST(CudnnPieces, NothingToDoIsNoFault) {
  EXPECT_TRUE(forward({}, 512, 512).nothing_to_do);
  AttentionSlice none = causal(0, 0, 512);
  none.diagonal = -512;
  EXPECT_TRUE(forward({none}, 512, 512).nothing_to_do);
  EXPECT_FALSE(forward({causal(0, 0, 512)}, 512, 512).nothing_to_do);
}

struct Refused {
  const char* words;
  std::function<void(AttentionForwardArgs&, CudnnFacts&)> change;
};

TEST(CudnnRefusals, OfTheCall) {
  const Tensor table = at(1 << 24, DType::kF32, {8});
  const Refused cases[] = {
      {"no cuDNN here", [](auto&, CudnnFacts& f) { f.absent = "no cuDNN here"; }},
      {"cuDNN 9.14.1 has faults", [](auto&, CudnnFacts& f) { f.version = 91401; }},
      {"compute capability 7.5", [](auto&, CudnnFacts& f) { f.capability = 75; }},
      {"compute capability 12.0", [](auto&, CudnnFacts& f) { f.capability = 120; }},
      {"not f32", [](AttentionForwardArgs& a, auto&) { a.q.dtype = DType::kF32; }},
      {"invariant mode", [](AttentionForwardArgs& a, auto&) { a.invariant = true; }},
      {"ALiBi", [&](AttentionForwardArgs& a, auto&) { a.bias.slopes = table; }},
      {"xPos", [&](AttentionForwardArgs& a, auto&) { a.bias.decay = table; }},
      {"head dim of 36",
       [](AttentionForwardArgs& a, auto&) {
         a.q.shape = {512, 8, 36};
       }},
      {"head dim of 264",
       [](AttentionForwardArgs& a, auto&) {
         a.q.shape = {512, 8, 264};
       }},
      {"beyond 2^31",
       [](AttentionForwardArgs& a, auto&) {
         a.q.shape = {std::int64_t{1} << 21, 8, 128};
       }},
      {"multiple of 16 bytes", [](AttentionForwardArgs& a, auto&) { a.k.data += 8; }},
      {"multiple of 16 bytes", [](AttentionForwardArgs& a, auto&) { a.out.data += 2; }},
  };
  const Slices slices{causal(0, 0, 512)};
  for (const Refused& c : cases) {
    AttentionForwardArgs args = forward_args(slices, 512, 512);
    CudnnFacts facts = kHopper;
    c.change(args, facts);
    EXPECT_THAT(cudnn_forward_support(args, facts).refusal, HasSubstr(c.words));
  }
  // A head dim of 256 is Hopper's alone.
  const AttentionForwardArgs wide = forward_args(slices, 512, 512, 256);
  EXPECT_EQ(cudnn_forward_support(wide, kHopper).refusal, "");
  CudnnFacts ampere = kHopper;
  ampere.capability = 80;
  EXPECT_THAT(cudnn_forward_support(wide, ampere).refusal, HasSubstr("head dim of 256"));
}

TEST(CudnnRefusals, OfSlices) {
  AttentionSlice s = causal(0, 0, 1024);
  s.kv_heads = {0, 1};
  EXPECT_THAT(forward_refusal({s}), HasSubstr("some heads see other keys"));
  s = causal(0, 0, 1024);
  s.diagonal = -1;
  EXPECT_THAT(forward_refusal({s}), HasSubstr("rows without a key"));
  s = {.q_len = 1024, .k_len = 1024, .kind = MaskKind::kInverseCausal, .window = 100};
  EXPECT_THAT(forward_refusal({s}), HasSubstr("window without a causal border"));
  s = {.q_len = 512, .k_len = 512, .kind = MaskKind::kBand, .diagonal = 600, .window = 700};
  EXPECT_THAT(forward_refusal({s}), HasSubstr("does not touch the diagonal"));
  s = causal(0, 0, 1024);
  s.k_len = 512;  // the border leaves the keys at row 512
  EXPECT_THAT(forward_refusal({s}), HasSubstr("ends beside the last row"));
  EXPECT_THAT(forward_refusal({causal(0, 0, 127)}), HasSubstr("gains nothing"));
  EXPECT_THAT(forward_refusal(Slices(257, causal(0, 0, 512))), HasSubstr("257 slices"));
  Slices documents;
  for (std::int64_t i = 0, begin = 0; i < 9; begin += 128 + 8 * i, ++i)
    documents.push_back(causal(begin, begin, 128 + 8 * i));
  EXPECT_THAT(forward_refusal(documents), HasSubstr("9 pieces of different shapes"));
}

TEST(CudnnBackward, WhatItAsksFor) {
  const Slices slices{causal(0, 0, 1024)};
  AttentionBackwardArgs args = backward_args(slices, 1024, 1024);
  const CudnnAnswer a = cudnn_backward_support(args, kHopper);
  EXPECT_EQ(a.refusal, "");
  EXPECT_EQ(a.kv_heads_at_once, 2);
  args.out = {};
  EXPECT_THAT(cudnn_backward_support(args, kHopper).refusal, HasSubstr("on other ranks"));
  args = backward_args(slices, 1024, 1024);
  args.dout.data += 2;
  EXPECT_THAT(cudnn_backward_support(args, kHopper).refusal, HasSubstr("16 bytes"));
}

// pytorch #196678: a last half tile of keys with very negative scores.
TEST(CudnnBackward, WholeTilesOnly) {
  for (const std::int64_t length : {1088, 1000, 1025}) {
    const Slices slices{causal(0, 0, length)};
    EXPECT_THAT(cudnn_backward_support(backward_args(slices, length, length), kHopper).refusal,
                HasSubstr("whole tiles of 128"));
    EXPECT_EQ(cudnn_forward_support(forward_args(slices, length, length), kHopper).refusal, "");
  }
}

TEST(CudnnBackward, RepeatableOnlyWhereItIsSmall) {
  const auto refusal = [](std::int64_t length, CudnnFacts facts) {
    const Slices slices{causal(0, 0, length)};
    AttentionBackwardArgs args = backward_args(slices, length, length);
    args.deterministic = true;
    return cudnn_backward_support(args, facts).refusal;
  };
  EXPECT_EQ(refusal(4096, kHopper), "");  // 8 heads x 4096^2 x 2 bytes = 256 MiB
  EXPECT_THAT(refusal(4224, kHopper), HasSubstr("parallel.deterministic is true"));
  CudnnFacts blackwell = kHopper;
  blackwell.capability = 100;
  EXPECT_THAT(refusal(1024, blackwell), HasSubstr("vetted on Hopper only"));
}

TEST(CudnnBackward, WorkspaceIsBounded) {
  const auto answer = [](std::int64_t length) {
    const Slices slices{causal(0, 0, length)};
    return cudnn_backward_support(backward_args(slices, length, length), kHopper);
  };
  EXPECT_EQ(answer(65536).kv_heads_at_once, 2);
  EXPECT_EQ(answer(262144).kv_heads_at_once, 1);
  EXPECT_THAT(answer(1 << 20).refusal, HasSubstr("workspace"));
  // By hand: 65536 rows, 4 query heads of 128 to a KV head.
  const CudnnPiece piece{.q_len = 65536, .k_len = 65536};
  const std::int64_t rows = 65536, dims = 128;
  EXPECT_EQ(cudnn_backward_bytes(piece, 4, 128, false),
            rows * dims * (4 * 2 + 2 * 2 + 4 * 4 + 2 * 4 * 2) + rows * 4 * 2 * 4);
  EXPECT_EQ(cudnn_backward_bytes({.q_len = 128, .k_len = 128}, 1, 64, true),
            128 * 64 * (2 + 2 * 2) + 128 * 128 * 2 + 128 * 2 * 4);
}

}  // namespace
}  // namespace farspan::cuda
