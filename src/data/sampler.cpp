#include "data/sampler.h"

#include <algorithm>

#include "core/error.h"
#include "core/rng.h"
#include "data/permutation.h"
#include "data/source_window.h"

namespace farspan {
namespace {

// Documents of one source in the order of one epoch. Offsets of every kStride-th place are kept,
// the rest is added up on demand: a hundredth of the memory of a full table, for a short walk.
class EpochOrder {
 public:
  EpochOrder(std::span<const std::uint64_t> offsets, std::uint64_t seed, std::uint64_t source,
             std::uint64_t epoch)
      : offsets_(offsets),
        order_(offsets.size() - 1, seed, stream_id("data.documents", source, epoch)) {
    std::int64_t at = 0;
    for (std::uint64_t place = 0; place < order_.size(); ++place) {
      if (place % kStride == 0) stride_begin_.push_back(at);
      at += piece(place).count;
    }
  }

  std::uint64_t num_documents() const { return order_.size(); }

  // The whole document at a place of the order.
  Piece piece(std::uint64_t place) const {
    const std::uint64_t document = order_(place);
    const auto begin = static_cast<std::int64_t>(offsets_[document]);
    return {.begin = begin, .count = static_cast<std::int64_t>(offsets_[document + 1]) - begin};
  }

  // The place whose document holds token `at` of the epoch, and the offset inside the document.
  struct Found {
    std::uint64_t place;
    std::int64_t offset;
  };
  Found find(std::int64_t at) const {
    const auto it = std::upper_bound(stride_begin_.begin(), stride_begin_.end(), at) - 1;
    auto place = static_cast<std::uint64_t>(it - stride_begin_.begin()) * kStride;
    std::int64_t begin = *it;
    for (;; ++place) {
      const std::int64_t count = piece(place).count;
      if (at < begin + count) return {place, at - begin};
      begin += count;
    }
  }

 private:
  static constexpr std::uint64_t kStride = 64;

  std::span<const std::uint64_t> offsets_;
  Permutation order_;
  std::vector<std::int64_t> stride_begin_;  // tokens before place i * kStride
};

}  // namespace

// One source as an endless stream of tokens.
struct SampleReader::Stream {
  const TokenStore* store;
  std::uint64_t seed;
  std::uint64_t source;
  // A window rarely touches more than two epochs; the one used longest ago is dropped.
  std::vector<std::pair<std::int64_t, std::shared_ptr<const EpochOrder>>> recent{};

  std::int64_t epoch_tokens() const { return store->info().num_tokens; }

  const EpochOrder& order(std::int64_t epoch) {
    auto it = std::find_if(recent.begin(), recent.end(),
                           [epoch](const auto& e) { return e.first == epoch; });
    if (it == recent.end()) {
      if (recent.size() == 2) recent.erase(recent.begin());
      recent.emplace_back(epoch, std::make_shared<EpochOrder>(store->doc_offsets(), seed, source,
                                                              static_cast<std::uint64_t>(epoch)));
    } else {
      std::rotate(it, it + 1, recent.end());
    }
    return *recent.back().second;
  }

  // The document pieces that make up stream tokens [begin, begin + count).
  std::vector<Piece> window(std::int64_t begin, std::int64_t count) {
    std::vector<Piece> out;
    std::int64_t epoch = begin / epoch_tokens();
    auto [place, skip] = order(epoch).find(begin % epoch_tokens());
    while (count > 0) {
      const EpochOrder& documents = order(epoch);
      for (; place < documents.num_documents() && count > 0; ++place, skip = 0) {
        Piece piece = documents.piece(place);
        piece.begin += skip;
        piece.count = std::min(piece.count - skip, count);
        if (piece.count == 0) continue;
        count -= piece.count;
        out.push_back(piece);
      }
      ++epoch;
      place = 0;
    }
    return out;
  }
};

namespace {

std::vector<double> weights_of(const std::vector<WeightedStore>& sources) {
  std::vector<double> out;
  for (const WeightedStore& source : sources) out.push_back(source.weight);
  return out;
}

}  // namespace

SampleReader::SampleReader(std::vector<WeightedStore> sources, SampleOptions options)
    : sources_(std::move(sources)),
      options_(options),
      mixture_(weights_of(sources_), options.seed) {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const TokenStore& store = *sources_[i].store;
    if (options_.vocab_size > 0) store.check_vocabulary(options_.vocab_size);
    streams_.push_back({.store = &store, .seed = options_.seed, .source = i});
  }
}

SampleReader::~SampleReader() = default;
SampleReader::SampleReader(SampleReader&&) noexcept = default;
SampleReader& SampleReader::operator=(SampleReader&&) noexcept = default;

StageStart SampleReader::first_stage() const {
  return {.first_sample = 0, .source_tokens = std::vector<std::int64_t>(sources_.size(), 0)};
}

Mixture SampleReader::mixture_of(const StageStart& stage) const {
  if (stage.weights.empty()) return mixture_;
  FARSPAN_CHECK(stage.weights.size() == sources_.size(), "{} weights", stage.weights.size());
  return Mixture(stage.weights, options_.seed);
}

StageStart SampleReader::next_stage(const StageStart& stage, std::int64_t samples,
                                    std::int64_t sequence_length) const {
  FARSPAN_CHECK(stage.source_tokens.size() == sources_.size());
  const auto counts =
      mixture_of(stage).counts(samples, static_cast<std::uint64_t>(stage.first_sample));
  StageStart out{.first_sample = stage.first_sample + samples,
                 .source_tokens = stage.source_tokens};
  for (std::size_t i = 0; i < counts.size(); ++i)
    out.source_tokens[i] += counts[i] * stream_tokens(sequence_length, stage);
  return out;
}

Batch SampleReader::make_batch(std::int64_t first_sample, std::int64_t count,
                               std::int64_t sequence_length, const StageStart& stage) {
  FARSPAN_CHECK(first_sample >= stage.first_sample, "sample {} of a stage that starts at {}",
                first_sample, stage.first_sample);
  FARSPAN_CHECK(stage.source_tokens.size() == sources_.size());
  const Mixture mixture = mixture_of(stage);
  const PackingOptions& packing = stage.packing ? *stage.packing : options_.packing;
  Batch batch = empty_batch(count, sequence_length);
  std::int32_t segment = 0;
  for (std::int64_t row = 0; row < count; ++row) {
    const Mixture::Place place = mixture.place(first_sample + row - stage.first_sample,
                                               static_cast<std::uint64_t>(stage.first_sample));
    const auto source = static_cast<std::size_t>(place.source);
    const std::int64_t covered = stream_tokens(sequence_length, stage);
    const std::int64_t begin = stage.source_tokens[source] + place.ordinal * covered;
    const PositionKey key{.seed = options_.seed,
                          .sample = static_cast<std::uint64_t>(first_sample + row)};
    auto pieces = streams_[source].window(begin, covered + 1);
    if (covered > sequence_length)
      pieces = cut_window(pieces, {.sequence_length = sequence_length,
                                   .reset_positions = packing.reset_positions,
                                   .options = packing.positions,
                                   .key = key});
    segment = fill_row(batch, row, *sources_[source].store, pieces, packing, segment, key);
  }
  return batch;
}

std::int64_t SampleReader::stream_tokens(std::int64_t sequence_length,
                                         const StageStart& stage) const {
  const PackingOptions& packing = stage.packing ? *stage.packing : options_.packing;
  return std::max(sequence_length, packing.positions.source_window);
}

std::int64_t SampleReader::epoch_tokens(std::size_t source) const {
  return streams_.at(source).epoch_tokens();
}

std::string SampleReader::fingerprint(std::size_t count) const {
  FARSPAN_CHECK(count <= sources_.size(), "{} of {} sources", count, sources_.size());
  std::vector<const TokenStore*> stores;
  for (std::size_t i = 0; i < count; ++i) stores.push_back(sources_[i].store.get());
  return data_fingerprint(stores);
}

EvaluationReader::EvaluationReader(std::shared_ptr<const TokenStore> store, PackingOptions packing,
                                   std::int64_t vocab_size)
    : store_(std::move(store)), packing_(packing) {
  if (vocab_size > 0) store_->check_vocabulary(vocab_size);
}

std::int64_t EvaluationReader::num_samples(std::int64_t sequence_length,
                                           std::int64_t token_limit) const {
  const std::int64_t all = store_->info().num_tokens;
  const std::int64_t tokens = token_limit > 0 ? std::min(token_limit, all) : all;
  return (tokens + sequence_length - 1) / sequence_length;
}

Batch EvaluationReader::make_batch(std::int64_t first_sample, std::int64_t count,
                                   std::int64_t sequence_length, std::int64_t token_limit) const {
  const std::int64_t all = store_->info().num_tokens;
  const std::int64_t limit = token_limit > 0 ? std::min(token_limit, all) : all;
  Batch batch = empty_batch(count, sequence_length);
  std::int32_t segment = 0;
  for (std::int64_t row = 0; row < count; ++row) {
    // One token more than is scored, as target of the last; where the limit cuts a window short it
    // stays in the row, unscored.
    const std::int64_t begin = std::min(limit, (first_sample + row) * sequence_length);
    const std::int64_t scored_end = std::min(limit, begin + sequence_length);
    const std::int64_t end = begin == scored_end ? begin : std::min(all, scored_end + 1);
    segment = fill_row(batch, row, *store_, pieces(begin, end), packing_, segment);
  }
  return batch;
}

std::vector<Piece> EvaluationReader::pieces(std::int64_t begin, std::int64_t end) const {
  const auto offsets = store_->doc_offsets();
  std::vector<Piece> out;
  auto next = std::upper_bound(offsets.begin(), offsets.end(), static_cast<std::uint64_t>(begin));
  for (std::int64_t at = begin; at < end; ++next) {
    const std::int64_t stop = std::min(end, static_cast<std::int64_t>(*next));
    if (stop > at) out.push_back({at, stop - at});
    at = stop;
  }
  return out;
}

Batch EvaluationReader::make_windows(std::span<const Window> windows,
                                     std::int64_t sequence_length) const {
  const std::int64_t all = store_->info().num_tokens;
  Batch batch = empty_batch(static_cast<std::int64_t>(windows.size()), sequence_length);
  std::int32_t segment = 0;
  for (std::size_t row = 0; row < windows.size(); ++row) {
    const Window& w = windows[row];
    FARSPAN_CHECK(w.begin <= w.end && w.end - w.begin <= sequence_length, "window {} - {}", w.begin,
                  w.end);
    // One token more, as target of the last.
    const std::int64_t end = w.begin == w.end ? w.end : std::min(all, w.end + 1);
    segment = fill_row(batch, static_cast<std::int64_t>(row), *store_, pieces(w.begin, end),
                       packing_, segment);
    const auto labels = std::span(batch.labels)
                            .subspan(row * static_cast<std::size_t>(sequence_length),
                                     static_cast<std::size_t>(sequence_length));
    for (std::int64_t t = 0; t < sequence_length; ++t)
      if (w.begin + t < w.scored || w.begin + t >= w.end)
        labels[static_cast<std::size_t>(t)] = kIgnoreLabel;
  }
  return batch;
}

std::int64_t EvaluationReader::context_within(std::int64_t begin, std::int64_t token) const {
  if (packing_.documents == Documents::kJoined) return token - begin + 1;
  const auto offsets = store_->doc_offsets();
  const auto next =
      std::upper_bound(offsets.begin(), offsets.end(), static_cast<std::uint64_t>(token));
  return token - std::max(begin, static_cast<std::int64_t>(*(next - 1))) + 1;
}

}  // namespace farspan
