#include "train/micro_batch.h"

#include <algorithm>

#include "model/position.h"
#include "parallel/attention.h"
#include "parallel/attention_cost.h"

namespace farspan {
namespace {

// Where the documents lie, whatever their numbers are.
bool same_borders(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  if (a.size() != b.size()) return false;
  for (std::size_t t = 1; t < a.size(); ++t)
    if ((a[t] == a[t - 1]) != (b[t] == b[t - 1])) return false;
  return true;
}

// The rows [first, last) of a place's runs.
std::vector<IndexRange> rows_of(const std::vector<IndexRange>& runs, IndexRange rows) {
  std::vector<IndexRange> out;
  std::int64_t row = 0;
  for (const IndexRange& run : runs) {
    const std::int64_t begin = std::max(rows.begin - row, std::int64_t{0});
    const std::int64_t end = std::min(rows.end - row, run.size());
    if (begin < end)
      out.push_back({.begin = run.begin + begin * run.stride,
                     .end = run.begin + (end - 1) * run.stride + 1,
                     .stride = run.stride});
    row += run.size();
  }
  return out;
}

// Borders, in local rows, of the blocks that the runs consist of.
std::vector<std::int64_t> row_blocks(const std::vector<IndexRange>& runs,
                                     std::int64_t sequence_length, std::int64_t block) {
  std::vector<std::int64_t> borders{0};
  for (const IndexRange& run : runs) {
    FARSPAN_CHECK(run.stride == 1 && run.begin % sequence_length % block == 0,
                  "a run of tokens [{}, {}) by {} is not made of blocks of {}", run.begin, run.end,
                  run.stride, block);
    for (std::int64_t begin = run.begin; begin < run.end;) {
      const std::int64_t sequence = begin - begin % sequence_length;
      const std::int64_t end = std::min({begin + block, sequence + sequence_length, run.end});
      FARSPAN_CHECK(end == begin + block || end == sequence + sequence_length,
                    "tokens from {} on: a run ends inside a block of {}", begin, block);
      borders.push_back(borders.back() + end - begin);
      begin = end;
    }
  }
  return borders;
}

// Layers that have each of the distinct patterns.
std::vector<double> layer_counts(const LayerPatterns& patterns) {
  std::vector<double> counts(patterns.patterns.size(), 0);
  for (const int p : patterns.of_layer) counts[static_cast<std::size_t>(p)] += 1;
  return counts;
}

// A decay over a negative distance grows without bound.
void check_ascending(const Batch& batch) {
  for (std::size_t t = 1; t < batch.positions.size(); ++t) {
    if (batch.segments[t] != batch.segments[t - 1] || batch.positions[t] >= batch.positions[t - 1])
      continue;
    throw Error(ExitCode::kBadData,
                {.what = fmt::format("positions go down inside a document, from {} to {}, and xpos "
                                     "is defined for keys at or before the query's position",
                                     batch.positions[t - 1], batch.positions[t]),
                 .where = "position_ids of a token store of data.train or data.validation",
                 .fix = "give documents positions that go up, start a segment where they begin "
                        "again, keep data.documents: masked, or use model.position: rope"});
  }
}

// Read beyond its end, a table would give what happens to lie there.
void check_table(const Batch& batch, std::int64_t rows) {
  std::int64_t document = 0;
  for (std::size_t t = 0; t < batch.positions.size(); ++t) {
    document += t > 0 && batch.segments[t] != batch.segments[t - 1] ? 1 : 0;
    if (batch.positions[t] < rows) continue;
    throw Error(
        ExitCode::kBadData,
        {.what = fmt::format("position {} of document {} of a batch is beyond the {} rows of "
                             "the model's table of positions",
                             batch.positions[t], document, rows),
         .where = "model.max_position_embeddings",
         .fix = "use shorter sequences or documents, or train a model with a longer table"});
  }
}

}  // namespace

Sharding Sharding::from(const config::RunConfig& config, const ContextPlace& place) {
  const config::Parallel& parallel = config.parallel();
  FARSPAN_CHECK(parallel.attention() != "auto" && parallel.layout() != "auto",
                "the sharding is not chosen yet");
  const std::string& position = config.model().position();
  return {.layout = layout_kind(parallel.layout()),
          .place = place,
          .patterns = layer_patterns(config.model()),
          .num_heads = config.model().num_attention_heads(),
          .num_kv_heads = config.model().num_key_value_heads(),
          .gather = parallel.attention() == "allgather",
          .positions = position == "alibi" || position == "xpos",
          .decays = position == "xpos",
          .rotary = length_dependent_rotary(config.model()),
          .max_positions = position == "learned" ? config.model().max_position_embeddings() : 0,
          .block = parallel.invariant() ? kInvariantBlock : 0};
}

SequenceLayout make_layout(const Batch& batch, const Sharding& sharding) {
  return attention_layout({.documents = document_lengths(batch.segments),
                           .sequences = batch.sequences,
                           .patterns = sharding.patterns.patterns,
                           .weights = layer_counts(sharding.patterns),
                           .layout = sharding.layout,
                           .ranks = sharding.place.ring_size,
                           .heads = {.num_kv_heads = sharding.num_kv_heads},
                           .block = sharding.block});
}

double visible_pairs(std::span<const std::int32_t> segments, const LayerPatterns& patterns,
                     std::int64_t num_kv_heads) {
  std::vector<std::int64_t> lengths = document_lengths(segments);
  std::sort(lengths.begin(), lengths.end());
  const std::vector<double> layers = layer_counts(patterns);
  double sum = 0;
  for (std::size_t p = 0; p < patterns.patterns.size(); ++p) {
    const RowArea area(patterns.patterns[p], num_kv_heads);
    double pairs = 0;
    for (std::size_t i = 0, next = 0; i < lengths.size(); i = next) {
      while (next < lengths.size() && lengths[next] == lengths[i]) ++next;
      pairs += static_cast<double>(next - i) * area.of_rows(0, lengths[i], lengths[i]);
    }
    sum += pairs * layers[p] / static_cast<double>(patterns.of_layer.size());
  }
  return sum;
}

bool Sharder::same_documents(const Batch& batch) const {
  return !made_.plans.empty() && batch.sequence_length == sequence_length_ &&
         same_borders(batch.segments, segments_) &&
         (!sharding_.positions || batch.positions == positions_);
}

void Sharder::plan(const Batch& batch) {
  if (sharding_.decays) check_ascending(batch);
  const ContextPlace& place = sharding_.place;
  const SequenceLayout layout = make_layout(batch, sharding_);
  ranges_ = rows_of(
      layout.ranges(place.ring_rank),
      ulysses_share(layout.local_tokens(place.ring_rank), place.ulysses_rank, place.ulysses_size));
  std::vector<std::int32_t> kv_heads;
  if (place.ulysses_size > 1)
    kv_heads = ulysses_heads(sharding_.num_heads, sharding_.num_kv_heads, place.ulysses_rank,
                             place.ulysses_size)
                   .kv_heads;
  made_ = {};
  made_.plan_id = ++num_plans_;
  for (const AttentionPattern& pattern : sharding_.patterns.patterns)
    made_.plans.push_back(plan_attention(
        {.segments = batch.segments,
         .positions = sharding_.positions ? std::span<const std::int32_t>(batch.positions)
                                          : std::span<const std::int32_t>(),
         .layout = layout,
         .pattern = pattern,
         .local_kv_heads = kv_heads,
         .num_kv_heads = sharding_.num_kv_heads,
         .gather = sharding_.gather,
         .block = sharding_.block,
         .sequence_length = batch.sequence_length},
        place.ring_rank));
  if (sharding_.block > 0)
    made_.row_blocks = row_blocks(ranges_, batch.sequence_length, sharding_.block);
  made_.visible_pairs = visible_pairs(batch.segments, sharding_.patterns, sharding_.num_kv_heads);
  sequence_length_ = batch.sequence_length;
  segments_ = batch.segments;
  positions_ = batch.positions;
}

void Sharder::add_tables(const Batch& batch, MicroBatch& out) {
  std::vector<std::int64_t> lengths;
  std::vector<std::int32_t> documents;  // [token]
  for (std::size_t t = 0; t < batch.segments.size(); ++t) {
    if (t == 0 || batch.segments[t] != batch.segments[t - 1]) lengths.push_back(0);
    lengths.back() = std::max(lengths.back(), std::int64_t{batch.positions[t]} + 1);
    documents.push_back(static_cast<std::int32_t>(lengths.size() - 1));
  }
  RotaryTables tables = rotary_tables(*sharding_.rotary, lengths);
  for (std::int32_t& d : documents) d = tables.ids[static_cast<std::size_t>(d)];
  out.table_ids = take_tokens<std::int32_t>(documents, ranges_);
  out.inv_freq = std::move(tables.inv_freq);
  out.num_tables =
      static_cast<std::int64_t>(out.inv_freq.size()) / (sharding_.rotary->head_dim / 2);
}

MicroBatch Sharder::operator()(const Batch& batch) {
  if (sharding_.max_positions > 0) check_table(batch, sharding_.max_positions);
  const bool planned = same_documents(batch);
  if (!planned) plan(batch);
  MicroBatch out = made_;
  if (sharding_.rotary) add_tables(batch, out);
  reused_ = planned && out.inv_freq.size() <= most_frequencies_;
  most_frequencies_ =
      planned ? std::max(most_frequencies_, out.inv_freq.size()) : out.inv_freq.size();
  out.tokens = take_tokens<std::int32_t>(batch.tokens, ranges_);
  out.labels = take_tokens<std::int32_t>(batch.labels, ranges_);
  out.positions = take_tokens<std::int32_t>(batch.positions, ranges_);
  return out;
}

MicroBatch shard(const Batch& batch, const Sharding& sharding) { return Sharder(sharding)(batch); }

Batch blank_batch(std::int64_t sequences, std::int64_t sequence_length) {
  Batch batch;
  batch.sequences = sequences;
  batch.sequence_length = sequence_length;
  const auto n = static_cast<std::size_t>(batch.num_tokens());
  batch.tokens.assign(n, 0);
  batch.labels.assign(n, 0);
  batch.positions.assign(n, 0);
  batch.segments.resize(n);
  for (std::size_t t = 0; t < n; ++t) {
    const auto row = static_cast<std::int64_t>(t) / sequence_length;
    batch.segments[t] = static_cast<std::int32_t>(row);
    batch.positions[t] =
        static_cast<std::int32_t>(static_cast<std::int64_t>(t) - row * sequence_length);
  }
  return batch;
}

}  // namespace farspan
