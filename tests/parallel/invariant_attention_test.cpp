// Invariant attention: the bits of one rank on any number of ranks and under any layout of blocks,
// the definition's values, and exactly the bytes that it says (run_sharded checks them).
#include "parallel/invariant_attention.h"

#include <gtest/gtest.h>

#include <cstring>

#include "parallel/sharded_attention.h"

namespace farspan {
namespace {

using namespace farspan::testing;

constexpr std::int64_t kBlock = 32;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string differences(const TaskResult& a, const TaskResult& b) {
  std::string text;
  if (!same_bits(a.out, b.out)) text += "out ";
  if (!same_bits(a.lse, b.lse)) text += "lse ";
  if (!same_bits(a.dq, b.dq)) text += "dq ";
  if (!same_bits(a.dk, b.dk)) text += "dk ";
  if (!same_bits(a.dv, b.dv)) text += "dv ";
  return text;
}

Sharded one_rank(DType dtype) {
  return {
      .strategy = "allgather", .layout = LayoutKind::kContiguous, .dtype = dtype, .block = kBlock};
}

void expect_invariant(const TaskOptions& options, DType dtype = DType::kF32) {
  const AttentionTask task = make_task(options);
  const TaskResult one = run_sharded(task, one_rank(dtype));
  if (dtype == DType::kF32) expect_equal_results(one, definition(task));
  for (const LayoutKind layout :
       {LayoutKind::kContiguous, LayoutKind::kZigzag, LayoutKind::kStriped})
    for (const int ranks : {2, 3, 4, 5}) {
      Sharded how = one_rank(dtype);
      how.ring = ranks;
      how.layout = layout;
      EXPECT_EQ(differences(run_sharded(task, how), one), "")
          << "length " << options.length << " seed " << options.seed << " " << how.description();
    }
}

TEST(InvariantAttention, AnyRanksAndLayouts) {
  for (const auto& [length, longest] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {31, 31}, {97, 1000}, {160, 9}, {259, 120}})
    for (const DType dtype : {DType::kF32, DType::kBF16})
      expect_invariant(
          {.seed = static_cast<std::uint64_t>(length), .length = length, .longest = longest},
          dtype);
}

TEST(InvariantAttention, AnyMask) {
  const AttentionPattern patterns[] = {
      {.window = 20},
      {.window = 40, .sinks = 3},
      {.sparse = SparseKind::kBigBird, .block = 8, .seed = 5},
      {.sparse = SparseKind::kShifted, .group = 24},
  };
  for (const AttentionPattern& pattern : patterns) {
    SCOPED_TRACE(pattern.description());
    expect_invariant({.seed = 21, .length = 197, .longest = 150, .pattern = pattern});
  }
  expect_invariant({.seed = 22, .length = 197, .longest = 150, .alibi = true, .jumps = true});
  expect_invariant({.seed = 26, .length = 197, .longest = 150, .xpos = true, .jumps = true});
}

TEST(InvariantAttention, GroupsOfHeads) {
  for (const TaskHeads heads : {TaskHeads{1, 1, 8}, TaskHeads{6, 1, 12}, TaskHeads{3, 3, 40}})
    expect_invariant({.seed = 23, .length = 130, .longest = 90, .heads = heads});
}

// Plain all-gather's bits do depend on the ranks: the tests above can fail.
TEST(InvariantAttention, PlainAllgatherDiffers) {
  const AttentionTask task = make_task({.seed = 24, .length = 259});
  Sharded how{.strategy = "allgather", .ring = 1, .layout = LayoutKind::kContiguous};
  const TaskResult one = run_sharded(task, how);
  how.ring = 4;
  EXPECT_NE(differences(run_sharded(task, how), one), "");
}

// A term that has no place in the sums must not be lost: it becomes NaN, as does what it is part
// of.
TEST(InvariantAttention, WhatCannotBeAddedBecomesNaN) {
  AttentionTask task = make_task({.seed = 25, .length = 96});
  task.dout[5] = std::numeric_limits<float>::infinity();
  Sharded how = one_rank(DType::kF32);
  for (const int ranks : {1, 3}) {
    how.ring = ranks;
    const TaskResult result = run_sharded(task, how);
    EXPECT_TRUE(std::isnan(result.dv[0])) << ranks;
  }
}

}  // namespace
}  // namespace farspan
