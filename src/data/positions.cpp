#include "data/positions.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <unordered_set>

#include "core/error.h"
#include "core/rng.h"

namespace farspan {
namespace {

// Draws one after the other from one document's numbers.
class Draws {
 public:
  Draws(const char* purpose, const PositionKey& key)
      : rng_(key.seed, stream_id(purpose, key.sample, key.document)) {}
  // Uniform among low, .., high.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(
                     rng_.below(next_++, static_cast<std::uint64_t>(high - low + 1)));
  }
  // Uniform in [0, 1).
  double uniform() { return rng_.uniform(next_++); }
  // `count` different numbers of [0, bound), ascending (Floyd's algorithm; Bentley 1987).
  std::vector<std::int64_t> sorted_sample(std::int64_t count, std::int64_t bound) {
    std::unordered_set<std::int64_t> taken;
    taken.reserve(static_cast<std::size_t>(count));
    for (std::int64_t j = bound - count; j < bound; ++j)
      if (!taken.insert(between(0, j)).second) taken.insert(j);
    std::vector<std::int64_t> sample(taken.begin(), taken.end());
    std::sort(sample.begin(), sample.end());
    return sample;
  }

 private:
  CounterRng rng_;
  std::uint64_t next_ = 0;
};

// A run more, or a longer last one.
void append(std::vector<PositionRun>& runs, std::int64_t first, std::int64_t count) {
  if (count == 0) return;
  if (!runs.empty() && runs.back().first + runs.back().count == first)
    runs.back().count += count;
  else
    runs.push_back({first, count});
}

// Where chunks begin among the n tokens, and by how much their positions and their text move.
struct PoseChunks {
  std::vector<std::int64_t> begins;  // and n at the end
  std::vector<std::int64_t> jumps, skips;
};

PoseChunks draw_chunks(const PositionOptions& options, const PositionKey& key, std::int64_t n,
                       std::int64_t source) {
  Draws draws("positions.pose", key);
  const std::int64_t chunks = std::min(options.chunks, n);
  // Later chunks keep a token each, as far as there are any.
  const std::int64_t cap =
      options.first_chunk_full ? std::max<std::int64_t>(1, n - chunks + 1) : (n + 1) / 2;
  PoseChunks out{.begins = {0, draws.between(1, std::min(cap, n))}, .jumps = {0}, .skips = {0}};
  const std::int64_t first = out.begins[1], rest = n - first;
  if (rest > 1 && chunks > 2)
    for (const std::int64_t border : draws.sorted_sample(std::min(chunks - 2, rest - 1), rest - 1))
      out.begins.push_back(first + border + 1);
  out.begins.push_back(n);
  const std::size_t count = out.begins.size() - 1;
  const std::int64_t most =
      options.target_context + (options.target_margin ? options.original_context : 0) - n;
  while (out.jumps.size() < count) out.jumps.push_back(draws.between(out.jumps.back(), most));
  // Drawn last: positions are the same whatever the text is cut from.
  for (std::size_t i = 1; i < count; ++i) {
    const bool zero = options.content_offset == ContentOffset::kZero;
    if (options.content_offset == ContentOffset::kUniform)
      out.skips.push_back(draws.between(out.skips.back(), source - n));
    else
      out.skips.push_back(zero ? 0 : std::min(out.jumps[i], source - n));
  }
  return out;
}

std::vector<PositionRun> draw_pose(const PositionOptions& options, const PositionKey& key,
                                   std::int64_t n) {
  const PoseChunks chunks = draw_chunks(options, key, n, n);
  std::vector<PositionRun> runs;
  for (std::size_t i = 0; i < chunks.jumps.size(); ++i)
    append(runs, chunks.begins[i] + chunks.jumps[i], chunks.begins[i + 1] - chunks.begins[i]);
  return runs;
}

// The whole part of a draw from normal(1 + s, 3) truncated to [2, 2s], by inversion of its
// distribution at `share` of its mass.
std::int64_t cream_alpha(double s, double share) {
  constexpr double kDeviation = 3;
  const auto below = [&](double x) {
    return 0.5 * std::erfc(-(x - (1 + s)) / (kDeviation * std::numbers::sqrt2));
  };
  const double mass = below(2) + share * (below(2 * s) - below(2));
  std::int64_t low = 2, high = static_cast<std::int64_t>(2 * s);  // alpha is in [low, high]
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (below(static_cast<double>(middle)) <= mass)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

std::vector<PositionRun> draw_cream(const PositionOptions& options, const PositionKey& key,
                                    std::int64_t n) {
  Draws draws("positions.cream", key);
  const auto target = static_cast<double>(options.target_context);
  const double s = target / static_cast<double>(options.original_context);
  const std::int64_t third = n / 3;
  const std::int64_t ends =
      draws.between(0, 1) == 0 ? third : std::min(third, static_cast<std::int64_t>(4 * s));
  const auto alpha = static_cast<double>(cream_alpha(s, draws.uniform()));
  const double most = target / static_cast<double>(n);
  const double f = s > 1 ? 1 + (alpha - 2) / (2 * s - 2) * (most - 1) : 1;
  const std::int64_t middle = n - 2 * ends;
  const auto moved = [&](std::int64_t tokens) {
    return static_cast<std::int64_t>(static_cast<double>(tokens) * f);
  };
  const std::int64_t low = ends + moved(middle - 1), high = moved(n) - ends - 1;
  const std::int64_t end = draws.between(low, std::max(low, high));
  std::vector<PositionRun> runs;
  append(runs, 0, ends);
  append(runs, end - middle + 1, middle);
  append(runs, options.target_context - ends, ends);
  return runs;
}

std::vector<PositionRun> draw_randomized(const PositionOptions& options, const PositionKey& key,
                                         std::int64_t n) {
  Draws draws("positions.randomized", key);
  std::vector<PositionRun> runs;
  for (const std::int64_t position : draws.sorted_sample(n, options.target_context))
    append(runs, position, 1);
  return runs;
}

}  // namespace

std::int64_t PositionOptions::end(std::int64_t tokens) const {
  if (sampler == PositionSampler::kSequential) return tokens;
  return target_context + (target_margin ? original_context : 0);
}

namespace {

void check_lengths(const PositionOptions& options, std::int64_t tokens) {
  FARSPAN_CHECK(tokens <= options.original_context &&
                    options.original_context <= options.target_context && options.chunks >= 2,
                "{} tokens, original context {}, target {}, {} chunks", tokens,
                options.original_context, options.target_context, options.chunks);
}

}  // namespace

std::vector<PositionRun> draw_positions(const PositionOptions& options, const PositionKey& key,
                                        std::int64_t tokens) {
  if (tokens == 0) return {};
  if (options.sampler == PositionSampler::kSequential) return {{0, tokens}};
  check_lengths(options, tokens);
  switch (options.sampler) {
    case PositionSampler::kPose:
      return draw_pose(options, key, tokens);
    case PositionSampler::kCream:
      return draw_cream(options, key, tokens);
    default:
      return draw_randomized(options, key, tokens);
  }
}

std::vector<TextRun> draw_text(const PositionOptions& options, const PositionKey& key,
                               std::int64_t tokens, std::int64_t source) {
  if (tokens == 0) return {};
  check_lengths(options, tokens);
  FARSPAN_CHECK(options.sampler == PositionSampler::kPose && tokens <= source,
                "{} tokens of a text of {}", tokens, source);
  const PoseChunks chunks = draw_chunks(options, key, tokens, source);
  std::vector<TextRun> runs;
  for (std::size_t i = 0; i < chunks.skips.size(); ++i) {
    const std::int64_t begin = chunks.begins[i] + chunks.skips[i];
    const std::int64_t count = chunks.begins[i + 1] - chunks.begins[i];
    if (count == 0) continue;
    if (!runs.empty() && runs.back().begin + runs.back().count == begin)
      runs.back().count += count;
    else
      runs.push_back({begin, count});
  }
  return runs;
}

}  // namespace farspan
