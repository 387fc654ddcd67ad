#include "train/long_samples.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/rng.h"
#include "data/permutation.h"

namespace farspan {
namespace {

// Documents as [begin, end); all of the text is one where documents are joined.
std::vector<std::int64_t> borders(const EvaluationReader& reader) {
  const PackingOptions& packing = reader.packing();
  if (packing.documents == Documents::kJoined && !packing.reset_positions)
    return {0, reader.store().info().num_tokens};
  const auto offsets = reader.store().doc_offsets();
  return {offsets.begin(), offsets.end()};
}

[[noreturn]] void refuse(const EvaluationReader& reader, std::string what, std::string fix) {
  throw Error(
      ExitCode::kBadData,
      {.what = std::move(what), .where = reader.store().path().string(), .fix = std::move(fix)});
}

}  // namespace

std::vector<EvaluationReader::Window> draw_long_samples(const EvaluationReader& reader,
                                                        const LongSamples& samples) {
  FARSPAN_CHECK(samples.length >= 1 && samples.count >= 1 && samples.scored <= samples.length);
  const StoreInfo& info = reader.store().info();
  if (info.has_position_ids || info.has_segment_ids)
    refuse(reader, "the store has positions or segments of its own, which may end before the text",
           "use a store without position_ids and segment_ids");
  const std::vector<std::int64_t> begins = borders(reader);
  std::vector<std::int64_t> places;  // of all whole windows
  std::int64_t longest = 0;
  for (std::size_t d = 0; d + 1 < begins.size(); ++d) {
    longest = std::max(longest, begins[d + 1] - begins[d]);
    for (std::int64_t at = begins[d]; at + samples.length <= begins[d + 1]; at += samples.length)
      places.push_back(at);
  }
  const bool masked = reader.packing().documents == Documents::kMasked;
  if (places.empty())
    refuse(reader,
           fmt::format("no document has {} tokens: the longest has {}", samples.length, longest),
           masked
               ? "use a shorter --target-context, held-out text of longer documents (--data), or "
                 "--documents joined"
               : "use a shorter --target-context, or a longer text (--data)");
  const Permutation order(places.size(), samples.seed, stream_id("extend.samples"));
  std::vector<EvaluationReader::Window> out;
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(order.size(), samples.count); ++i) {
    const std::int64_t begin = places[order(i)], end = begin + samples.length;
    out.push_back(
        {.begin = begin, .end = end, .scored = samples.scored > 0 ? end - samples.scored : begin});
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  return out;
}

double long_samples_nll(ScoringModel& model, const EvaluationReader& reader,
                        const std::vector<EvaluationReader::Window>& samples, std::int64_t length) {
  const auto places = samples.size() * static_cast<std::size_t>(length);
  std::vector<double> values(2 * places);  // whether it was scored, its nll
  const ScoredRows rows{
      .count = std::ssize(samples),
      .length = length,
      .make =
          [&](std::int64_t first, std::int64_t n) {
            std::vector<EvaluationReader::Window> cut(static_cast<std::size_t>(n));
            for (std::int64_t i = 0; i < n && first + i < std::ssize(samples); ++i)
              cut[static_cast<std::size_t>(i)] = samples[static_cast<std::size_t>(first + i)];
            return reader.make_windows(cut, length);
          },
      .one_by_one = true};
  score_nll(model, rows, [&](std::int64_t row, std::int64_t token, double nll) {
    const auto place = static_cast<std::size_t>(row * length + token);
    values[place] = 1;
    values[places + place] = nll;
  });
  sum_over_ranks(model, values);
  double count = 0, sum = 0;
  for (std::size_t i = 0; i < places; ++i) count += values[i], sum += values[places + i];
  if (count == 0)
    refuse(reader, "none of the samples' tokens is scored", "use text whose labels are not -100");
  return sum / count;
}

}  // namespace farspan
