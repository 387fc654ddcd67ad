#include "data/positions.h"

#include <algorithm>
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

std::vector<PositionRun> draw_pose(const PositionOptions& options, const PositionKey& key,
                                   std::int64_t n) {
  Draws draws("positions.pose", key);
  const std::int64_t chunks = std::min(options.chunks, n);
  // Later chunks keep a token each, as far as there are any.
  const std::int64_t cap =
      options.first_chunk_full ? std::max<std::int64_t>(1, n - chunks + 1) : (n + 1) / 2;
  std::vector<std::int64_t> begins = {0, draws.between(1, std::min(cap, n))};
  const std::int64_t rest = n - begins[1];
  if (rest > 1 && chunks > 2)
    for (const std::int64_t border : draws.sorted_sample(std::min(chunks - 2, rest - 1), rest - 1))
      begins.push_back(begins[1] + border + 1);
  begins.push_back(n);
  const std::int64_t most =
      options.target_context + (options.target_margin ? options.original_context : 0) - n;
  std::vector<PositionRun> runs;
  std::int64_t skipped = 0;
  for (std::size_t i = 0; i + 1 < begins.size(); ++i) {
    if (i > 0) skipped = draws.between(skipped, most);
    append(runs, begins[i] + skipped, begins[i + 1] - begins[i]);
  }
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

std::vector<PositionRun> draw_positions(const PositionOptions& options, const PositionKey& key,
                                        std::int64_t tokens) {
  if (tokens == 0) return {};
  if (options.sampler == PositionSampler::kSequential) return {{0, tokens}};
  FARSPAN_CHECK(tokens <= options.original_context &&
                    options.original_context <= options.target_context && options.chunks >= 2,
                "{} tokens, original context {}, target {}, {} chunks", tokens,
                options.original_context, options.target_context, options.chunks);
  return options.sampler == PositionSampler::kPose ? draw_pose(options, key, tokens)
                                                   : draw_randomized(options, key, tokens);
}

}  // namespace farspan
