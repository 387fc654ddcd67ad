#include "parallel/sequence_layout.h"

#include <algorithm>

namespace farspan {
namespace {

void append(std::vector<IndexRange>& ranges, IndexRange next) {
  if (next.size() == 0) return;
  if (!ranges.empty() && ranges.back().end == next.begin)
    ranges.back().end = next.end;
  else
    ranges.push_back(next);
}

IndexRange canonical(IndexRange r) {
  FARSPAN_CHECK(r.begin >= 0 && r.end > r.begin && r.stride >= 1, "range [{}, {}) by {}", r.begin,
                r.end, r.stride);
  const std::int64_t size = r.size();
  return {r.begin, r.begin + (size - 1) * r.stride + 1, size == 1 ? 1 : r.stride};
}

std::int64_t stride_of(const std::vector<std::vector<IndexRange>>& ranges) {
  for (const auto& of_rank : ranges)
    for (const IndexRange& r : of_rank)
      if (r.stride >= 1 && r.size() > 1) return r.stride;
  return 1;
}

}  // namespace

LayoutKind layout_kind(std::string_view name) {
  if (name == "contiguous") return LayoutKind::kContiguous;
  if (name == "zigzag") return LayoutKind::kZigzag;
  if (name == "striped") return LayoutKind::kStriped;
  if (name == "balanced") return LayoutKind::kBalanced;
  throw Error(ExitCode::kUsage, {.what = fmt::format("there is no layout '{}'", name),
                                 .where = "parallel.layout",
                                 .fix = "use contiguous, zigzag, striped or balanced"});
}

SequenceLayout SequenceLayout::make(LayoutKind kind, std::int64_t sequences, std::int64_t length,
                                    int ranks, std::int64_t block) {
  FARSPAN_CHECK(kind != LayoutKind::kBalanced, "documents decide: balanced_layout()");
  FARSPAN_CHECK(ranks >= 1 && sequences >= 0 && length >= 0 && block >= 1);
  std::vector<std::vector<IndexRange>> ranges(static_cast<std::size_t>(ranks));
  const auto of = [&](std::int64_t rank) -> auto& {
    return ranges[static_cast<std::size_t>(rank)];
  };
  const std::int64_t blocks = (length + block - 1) / block;
  for (std::int64_t s = 0; s < sequences; ++s) {
    const std::int64_t first = s * length;
    // Border i of n nearly equal parts.
    const auto border = [&](std::int64_t i, std::int64_t n) {
      return first + std::min(length, blocks * i / n * block);
    };
    if (kind == LayoutKind::kStriped && block == 1) {
      for (std::int64_t r = 0; r < std::min<std::int64_t>(ranks, length); ++r)
        of(r).push_back({first + r, first + length, ranks});
    } else if (kind == LayoutKind::kStriped) {
      for (std::int64_t b = 0; b < blocks; ++b)
        append(of(b % ranks), {border(b, blocks), border(b + 1, blocks)});
    } else {
      const std::int64_t runs = kind == LayoutKind::kZigzag ? 2 * ranks : ranks;
      for (std::int64_t r = 0; r < ranks; ++r) {
        append(of(r), {border(r, runs), border(r + 1, runs)});
        if (kind == LayoutKind::kZigzag)
          append(of(r), {border(runs - 1 - r, runs), border(runs - r, runs)});
      }
    }
  }
  return {std::move(ranges), kind == LayoutKind::kStriped && block == 1 ? ranks : 1};
}

SequenceLayout::SequenceLayout(std::vector<std::vector<IndexRange>> ranges)
    : SequenceLayout(std::move(ranges), 0) {}

SequenceLayout::SequenceLayout(std::vector<std::vector<IndexRange>> ranges, std::int64_t stride)
    : ranges_(std::move(ranges)), stride_(stride > 0 ? stride : stride_of(ranges_)) {
  FARSPAN_CHECK(!ranges_.empty(), "a layout of no ranks");
  for (auto& of_rank : ranges_) {
    std::int64_t tokens = 0;
    for (IndexRange& r : of_rank) {
      r = canonical(r);
      FARSPAN_CHECK(r.size() == 1 || r.stride == stride_,
                    "range [{}, {}) by {} beside others by {}", r.begin, r.end, r.stride, stride_);
      tokens += r.size();
    }
    local_.push_back(tokens);
    num_tokens_ += tokens;
  }
  check_cover();
}

// Runs of a residue class modulo the stride, in order, must follow each other without a gap.
void SequenceLayout::check_cover() const {
  std::vector<IndexRange> all;
  for (const auto& of_rank : ranges_) all.insert(all.end(), of_rank.begin(), of_rank.end());
  const auto residue = [&](const IndexRange& r) { return stride_ == 1 ? 0 : r.begin % stride_; };
  std::sort(all.begin(), all.end(), [&](const IndexRange& a, const IndexRange& b) {
    const std::int64_t ra = residue(a), rb = residue(b);
    return ra != rb ? ra < rb : a.begin < b.begin;
  });
  std::size_t run = 0;
  for (std::int64_t c = 0; c < std::min(stride_, num_tokens_); ++c) {
    std::int64_t next = c;
    for (; run < all.size() && residue(all[run]) == c; ++run) {
      FARSPAN_CHECK(all[run].begin == next, "index {} is held by no rank or by two",
                    std::min(next, all[run].begin));
      next += all[run].size() * stride_;
    }
    FARSPAN_CHECK(next >= num_tokens_, "index {} is held by no rank", next);
  }
  FARSPAN_CHECK(run == all.size(), "index {} is past the {} tokens held", all[run].begin,
                num_tokens_);
}

SequenceLayout SequenceLayout::refined(std::int64_t stride) const {
  FARSPAN_CHECK(stride >= 1, "refined by {}", stride);
  if (stride == 1) return *this;
  std::vector<std::vector<IndexRange>> ranges(ranges_.size());
  for (std::size_t rank = 0; rank < ranges_.size(); ++rank)
    for (const IndexRange& r : ranges_[rank])
      for (std::int64_t i = 0; i < std::min(stride, r.size()); ++i)
        ranges[rank].push_back({r.begin + i * r.stride, r.end, r.stride * stride});
  return {std::move(ranges), stride_ * stride};
}

std::int64_t SequenceLayout::max_local_tokens() const {
  return *std::max_element(local_.begin(), local_.end());
}

}  // namespace farspan
