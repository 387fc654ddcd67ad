#include "train/micro_batch.h"

namespace farspan {

Sharding Sharding::from(const config::RunConfig& config, const ContextPlace& place) {
  return {.layout = layout_kind(config.parallel().layout()),
          .place = place,
          .patterns = layer_patterns(config.model()),
          .num_heads = config.model().num_attention_heads(),
          .num_kv_heads = config.model().num_key_value_heads(),
          .gather = config.parallel().attention() == "allgather"};
}

MicroBatch shard(const Batch& batch, const Sharding& sharding) {
  const ContextPlace& place = sharding.place;
  const SequenceLayout layout = SequenceLayout::make(sharding.layout, batch.sequences,
                                                     batch.sequence_length, place.ring_size);
  const IndexRange share =
      ulysses_share(layout.local_tokens(place.ring_rank), place.ulysses_rank, place.ulysses_size);
  const auto take = [&](const std::vector<std::int32_t>& global) {
    const auto rows = layout.take<std::int32_t>(global, place.ring_rank);
    return std::vector<std::int32_t>(rows.begin() + share.begin, rows.begin() + share.end);
  };
  MicroBatch out;
  out.tokens = take(batch.tokens);
  out.labels = take(batch.labels);
  out.positions = take(batch.positions);
  for (const AttentionPattern& pattern : sharding.patterns.patterns)
    out.plans.push_back(plan_attention({.segments = batch.segments,
                                        .positions = batch.positions,
                                        .layout = layout,
                                        .pattern = pattern,
                                        .num_kv_heads = sharding.num_kv_heads,
                                        .gather = sharding.gather},
                                       place.ring_rank));
  const std::vector<std::int32_t>& segments = batch.segments;
  for (std::size_t begin = 0, end = 0; begin < segments.size(); begin = end) {
    while (end < segments.size() && segments[end] == segments[begin]) ++end;
    const auto length = static_cast<double>(end - begin);
    out.visible_pairs += length * (length + 1) / 2;
  }
  return out;
}

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
