#include "train/micro_batch.h"

namespace farspan {

MicroBatch shard(const Batch& batch, const SequenceLayout& layout, int context_rank) {
  MicroBatch out;
  out.tokens = layout.take<std::int32_t>(batch.tokens, context_rank);
  out.labels = layout.take<std::int32_t>(batch.labels, context_rank);
  out.positions = layout.take<std::int32_t>(batch.positions, context_rank);
  out.plan = plan_attention(batch.segments, layout, context_rank);
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
