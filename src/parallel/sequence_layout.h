// Which tokens each rank holds, and in which order. A layout is, per rank, a list of runs of the
// global index (strided where tokens are dealt out one by one); nothing else in Farspan knows how
// sequences are cut.
//
//   auto layout = SequenceLayout::make(LayoutKind::kZigzag, /*sequences=*/2, /*length=*/4096,
//   /*ranks=*/4); std::vector<int32_t> mine = layout.take<int32_t>(batch.tokens, rank);
//
// There is no divisibility rule: shards may be uneven, and empty when there are fewer tokens than
// ranks. `balanced` needs documents and patterns: parallel/balance.h.
#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace farspan {

// begin, begin + stride, begin + 2 stride, ... below end. Canonical: end is the last one plus 1,
// and the stride of a single one is 1.
struct IndexRange {
  std::int64_t begin = 0, end = 0;  // [begin, end)
  std::int64_t stride = 1;
  std::int64_t size() const { return (end - begin + stride - 1) / stride; }
  friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

enum class LayoutKind : std::uint8_t {
  kContiguous,  // rank r holds the r-th of P equal runs
  kZigzag,      // rank r holds runs r and 2P-1-r of 2P: equal causal attention area
  kStriped,     // token i of a sequence goes to rank i mod P (Brandon et al. 2023)
  kBalanced,    // area, tokens and traffic weighed together: parallel/balance.h
};

// From the configuration's name; throws Error(kUsage) for a layout that does not exist.
LayoutKind layout_kind(std::string_view name);

// The elements at `runs` of a per-token array of the global sequence, in their order.
template <typename T>
std::vector<T> take_tokens(std::span<const T> global, const std::vector<IndexRange>& runs) {
  std::vector<T> local;
  for (const IndexRange& r : runs) {
    if (r.stride == 1) {
      local.insert(local.end(), global.begin() + r.begin, global.begin() + r.end);
      continue;
    }
    for (std::int64_t i = r.begin; i < r.end; i += r.stride)
      local.push_back(global[static_cast<std::size_t>(i)]);
  }
  return local;
}

class SequenceLayout {
 public:
  // `sequences` sequences of `length` tokens laid end to end, each cut across all ranks alike.
  // Not kBalanced. `block` > 1: cuts only at multiples of `block` tokens from a sequence's start,
  // and kStriped deals out blocks instead of tokens (parallel.invariant).
  static SequenceLayout make(LayoutKind kind, std::int64_t sequences, std::int64_t length,
                             int ranks, std::int64_t block = 1);
  // Any assignment, rows in the order given. Together the ranks must cover [0, n) once, and all
  // runs that hold more than one token must have the same stride. Runs are made canonical.
  explicit SequenceLayout(std::vector<std::vector<IndexRange>> ranges);

  // The same tokens on each rank, ordered so that every run steps by `stride` times the present
  // stride: runs are split by residue. For patterns with dilation.
  SequenceLayout refined(std::int64_t stride) const;
  // Refined by the least that makes stride() a multiple of `row_stride`.
  SequenceLayout fitted(std::int64_t row_stride) const {
    return refined(row_stride / std::gcd(stride_, row_stride));
  }
  // Tokens between neighbours of a run; 1 when nothing is strided.
  std::int64_t stride() const { return stride_; }

  int num_ranks() const { return static_cast<int>(ranges_.size()); }
  std::int64_t num_tokens() const { return num_tokens_; }  // of all ranks
  const std::vector<IndexRange>& ranges(int rank) const {
    return ranges_[static_cast<std::size_t>(rank)];
  }
  std::int64_t local_tokens(int rank) const { return local_[static_cast<std::size_t>(rank)]; }
  std::int64_t max_local_tokens() const;

  // This rank's elements of a per-token array of the global sequence, in local order.
  template <typename T>
  std::vector<T> take(std::span<const T> global, int rank) const {
    FARSPAN_CHECK(static_cast<std::int64_t>(global.size()) == num_tokens_, "{} of {} tokens",
                  global.size(), num_tokens_);
    return take_tokens(global, ranges(rank));
  }

 private:
  // As above; runs of one token alone do not tell the stride.
  SequenceLayout(std::vector<std::vector<IndexRange>> ranges, std::int64_t stride);
  void check_cover() const;

  std::vector<std::vector<IndexRange>> ranges_;
  std::vector<std::int64_t> local_;
  std::int64_t num_tokens_ = 0;
  std::int64_t stride_ = 1;
};

}  // namespace farspan
