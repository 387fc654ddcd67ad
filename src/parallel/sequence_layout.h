// Which tokens each context rank holds. A layout is, per rank, an ascending list of ranges of the
// global index; nothing else in Farspan knows how sequences are cut.
//
//   auto layout = SequenceLayout::make(LayoutKind::kZigzag, /*sequences=*/2, /*length=*/4096,
//   /*ranks=*/4); std::vector<int32_t> mine = layout.take<int32_t>(batch.tokens, rank);
//
// There is no divisibility rule: shards may be uneven, and empty when there are fewer tokens than
// ranks.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace farspan {

struct IndexRange {
  std::int64_t begin = 0, end = 0;  // [begin, end)
  std::int64_t size() const { return end - begin; }
  friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

enum class LayoutKind : std::uint8_t {
  kContiguous,  // rank r holds the r-th of P equal runs
  kZigzag,      // rank r holds runs r and 2P-1-r of 2P: equal causal attention area
};

// From the configuration's name; throws Error(kUsage) for a layout that does not exist.
LayoutKind layout_kind(std::string_view name);

class SequenceLayout {
 public:
  // `sequences` sequences of `length` tokens laid end to end, each cut across all ranks alike.
  static SequenceLayout make(LayoutKind kind, std::int64_t sequences, std::int64_t length,
                             int ranks);
  // Any assignment. Ranges of a rank must ascend; together the ranks must cover [0, n) once.
  explicit SequenceLayout(std::vector<std::vector<IndexRange>> ranges);

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
    std::vector<T> local;
    local.reserve(static_cast<std::size_t>(local_tokens(rank)));
    for (const IndexRange& r : ranges(rank))
      local.insert(local.end(), global.begin() + r.begin, global.begin() + r.end);
    return local;
  }

 private:
  std::vector<std::vector<IndexRange>> ranges_;
  std::vector<std::int64_t> local_;
  std::int64_t num_tokens_ = 0;
};

}  // namespace farspan
