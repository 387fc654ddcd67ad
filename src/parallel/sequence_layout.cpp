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

}  // namespace

LayoutKind layout_kind(std::string_view name) {
  if (name == "contiguous") return LayoutKind::kContiguous;
  if (name == "zigzag") return LayoutKind::kZigzag;
  throw Error(ExitCode::kUsage, {.what = fmt::format("layout '{}' is not built yet", name),
                                 .where = "parallel.layout",
                                 .fix = "use zigzag or contiguous"});
}

SequenceLayout SequenceLayout::make(LayoutKind kind, std::int64_t sequences, std::int64_t length,
                                    int ranks, std::int64_t block) {
  FARSPAN_CHECK(block == 1 && kind != LayoutKind::kStriped && kind != LayoutKind::kBalanced);
  FARSPAN_CHECK(ranks >= 1 && sequences >= 0 && length >= 0);
  std::vector<std::vector<IndexRange>> ranges(static_cast<std::size_t>(ranks));
  const std::int64_t runs = kind == LayoutKind::kZigzag ? 2 * ranks : ranks;
  for (std::int64_t s = 0; s < sequences; ++s) {
    const auto run = [&](std::int64_t i) {
      return IndexRange{s * length + length * i / runs, s * length + length * (i + 1) / runs};
    };
    for (int r = 0; r < ranks; ++r) {
      append(ranges[static_cast<std::size_t>(r)], run(r));
      if (kind == LayoutKind::kZigzag)
        append(ranges[static_cast<std::size_t>(r)], run(runs - 1 - r));
    }
  }
  return SequenceLayout(std::move(ranges));
}

SequenceLayout::SequenceLayout(std::vector<std::vector<IndexRange>> ranges)
    : ranges_(std::move(ranges)) {
  FARSPAN_CHECK(!ranges_.empty());
  std::vector<IndexRange> all;
  for (const auto& of_rank : ranges_) {
    std::int64_t tokens = 0, last = 0;
    for (const IndexRange& r : of_rank) {
      FARSPAN_CHECK(r.begin >= last && r.end > r.begin, "range [{}, {}) after {}", r.begin, r.end,
                    last);
      last = r.end;
      tokens += r.size();
    }
    local_.push_back(tokens);
    num_tokens_ += tokens;
    all.insert(all.end(), of_rank.begin(), of_rank.end());
  }
  std::sort(all.begin(), all.end(),
            [](const IndexRange& a, const IndexRange& b) { return a.begin < b.begin; });
  std::int64_t next = 0;
  for (const IndexRange& r : all) {
    FARSPAN_CHECK(r.begin == next, "index {} is held by no rank or by two",
                  std::min(next, r.begin));
    next = r.end;
  }
}

std::int64_t SequenceLayout::max_local_tokens() const {
  return *std::max_element(local_.begin(), local_.end());
}

}  // namespace farspan
