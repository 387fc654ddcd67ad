#include "parallel/attention_pattern.h"

#include <algorithm>
#include <numeric>

#include "config/layer_types.h"

namespace farspan {
namespace {

// 1 + 2 + ... + n.
double triangle(std::int64_t n) { return static_cast<double>(n) * static_cast<double>(n + 1) / 2; }

// Sum of min(i + 1, limit) over i < n.
double ramp(std::int64_t n, std::int64_t limit) {
  const std::int64_t rising = std::min(n, limit);
  return triangle(rising) + static_cast<double>(n - rising) * static_cast<double>(limit);
}

// Rows [0, n) of causal groups of `group` rows.
double grouped(std::int64_t n, std::int64_t group) {
  const std::int64_t whole = n / group;
  return static_cast<double>(whole) * triangle(group) + triangle(n % group);
}

// A branch of a dilated mixture, summed over KV heads. Row t of a segment is seen by the heads of
// its residue, with t / dilation + 1 keys; each `dilation` rows together have all heads once.
double dilated(std::int64_t n, const DilatedBranch& b, std::int64_t heads) {
  const auto of_segment = [&](std::int64_t rows) {
    const std::int64_t whole = rows / b.dilation, rest = rows % b.dilation;
    // Heads with a residue below `rest`.
    const std::int64_t some = heads / b.dilation * rest + std::min(heads % b.dilation, rest);
    return triangle(whole) * static_cast<double>(heads) + static_cast<double>((whole + 1) * some);
  };
  const std::int64_t segments = n / b.segment;
  return static_cast<double>(segments) * of_segment(b.segment) + of_segment(n % b.segment);
}

// Block b sees min(b, most) blocks before itself: window, global and random ones fill up one after
// the other.
double big_bird(std::int64_t n, const AttentionPattern& p) {
  const std::int64_t most = p.window_blocks - 1 + p.global_blocks + p.random_blocks;
  const std::int64_t whole = n / p.block, rest = n % p.block;
  const auto size = static_cast<double>(p.block);
  const double blocks_before = whole > 0 ? ramp(whole - 1, most) : 0;
  return blocks_before * size * size + static_cast<double>(whole) * triangle(p.block) +
         static_cast<double>(std::min(whole, most)) * size * static_cast<double>(rest) +
         triangle(rest);
}

}  // namespace

std::string AttentionPattern::description() const {
  switch (sparse) {
    case SparseKind::kDilated: {
      std::string text = "dilated";
      for (std::size_t i = 0; i < branches.size(); ++i)
        text +=
            fmt::format("{}{}/{}", i == 0 ? " " : " + ", branches[i].segment, branches[i].dilation);
      return text;
    }
    case SparseKind::kBigBird:
      return fmt::format("bigbird {} global + {} window + {} random blocks of {}", global_blocks,
                         window_blocks, random_blocks, block);
    case SparseKind::kShifted:
      return fmt::format("s2 groups of {}", group);
    case SparseKind::kNone:
      break;
  }
  std::string text = causal ? "causal" : "both directions";
  if (window > 0)
    text = causal ? fmt::format("window {}", window)
                  : fmt::format("window {}, both directions", window);
  if (sinks > 0) text += fmt::format(" + {} sink{}", sinks, sinks == 1 ? "" : "s");
  return text;
}

std::int64_t AttentionPattern::row_stride() const {
  std::int64_t stride = 1;
  if (sparse == SparseKind::kDilated)
    for (const DilatedBranch& b : branches) stride = std::lcm(stride, b.dilation);
  return stride;
}

RowArea::RowArea(AttentionPattern pattern, std::int64_t num_kv_heads)
    : pattern_(std::move(pattern)), num_kv_heads_(num_kv_heads) {
  mask_tiles(pattern_, 1, num_kv_heads_);  // CHECKs the pattern
}

double RowArea::of_rows(std::int64_t begin, std::int64_t end, std::int64_t length) const {
  FARSPAN_CHECK(0 <= begin && begin <= end && end <= length, "rows [{}, {}) of {}", begin, end,
                length);
  return before(end, length) - before(begin, length);
}

double RowArea::before(std::int64_t row, std::int64_t length) const {
  const AttentionPattern& p = pattern_;
  switch (p.sparse) {
    case SparseKind::kDilated: {
      double sum = 0;
      for (const DilatedBranch& b : p.branches) sum += dilated(row, b, num_kv_heads_);
      return sum / static_cast<double>(num_kv_heads_);
    }
    case SparseKind::kBigBird:
      return big_bird(row, p);
    case SparseKind::kShifted: {
      const std::int64_t alone = std::min(row, p.group / 2);  // of the shifted heads
      return (grouped(row, p.group) + triangle(alone) + grouped(row - alone, p.group)) / 2;
    }
    case SparseKind::kNone:
      break;
  }
  // A row's keys up to itself; sinks and window fill up one after the other.
  const std::int64_t limit = p.window > 0 ? p.window + p.sinks : kFarDistance;
  const double up_to_itself = ramp(row, limit);
  if (p.causal) return up_to_itself;
  // Row i has min(length - 1 - i, window - 1) keys after itself: read from the other end, a ramp.
  const std::int64_t after = p.window > 0 ? p.window - 1 : kFarDistance;
  const auto reversed = [&](std::int64_t rows) { return rows > 0 ? ramp(rows - 1, after) : 0.0; };
  return up_to_itself + reversed(length) - reversed(length - row);
}

std::int64_t RowArea::reach() const {
  const AttentionPattern& p = pattern_;
  std::int64_t reach = 0;
  switch (p.sparse) {
    case SparseKind::kDilated:
      for (const DilatedBranch& b : p.branches) reach = std::max(reach, b.segment);
      return reach;
    case SparseKind::kBigBird:
      return p.global_blocks + p.random_blocks > 0 ? kFarDistance : p.window_blocks * p.block;
    case SparseKind::kShifted:
      return p.group;
    case SparseKind::kNone:
      break;
  }
  return p.window > 0 ? p.window : kFarDistance;
}

LayerPatterns layer_patterns(const config::Model& model) {
  const config::SparseAttention& sparse = model.sparse_attention();
  AttentionPattern full;
  full.causal = model.is_causal();
  if (sparse.type() == "dilated") {
    full.sparse = SparseKind::kDilated;
    FARSPAN_CHECK(sparse.segment_lengths_size() == sparse.dilations_size());
    for (int i = 0; i < sparse.dilations_size(); ++i)
      full.branches.push_back({sparse.segment_lengths(i), sparse.dilations(i)});
  } else if (sparse.type() == "bigbird") {
    full.sparse = SparseKind::kBigBird;
    full.block = sparse.block_size();
    full.window_blocks = sparse.window_blocks();
    full.global_blocks = sparse.global_blocks();
    full.random_blocks = sparse.random_blocks();
  } else if (sparse.type() == "s2") {
    full.sparse = SparseKind::kShifted;
    full.group = sparse.group_size();
  } else {
    FARSPAN_CHECK(sparse.type() == "none", "sparse pattern '{}'", sparse.type());
  }
  AttentionPattern sliding = full;
  sliding.window = model.sliding_window();
  sliding.sinks = model.attention_sinks();

  LayerPatterns out;
  for (std::int64_t layer = 0; layer < model.num_hidden_layers(); ++layer) {
    const AttentionPattern& pattern = layer_slides(model, layer) ? sliding : full;
    const auto known = std::find(out.patterns.begin(), out.patterns.end(), pattern);
    out.of_layer.push_back(static_cast<int>(known - out.patterns.begin()));
    if (known == out.patterns.end()) out.patterns.push_back(pattern);
  }
  return out;
}

}  // namespace farspan
