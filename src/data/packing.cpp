#include "data/packing.h"

#include "core/error.h"

namespace farspan {
namespace {

// The tokens that pieces name, one after the other; columns are empty where the store has none.
struct Columns {
  std::vector<std::int32_t> tokens, labels, positions, segments;
  std::vector<std::int32_t> document;  // which one of the pieces' documents a token belongs to
  std::vector<bool> after_skip;        // text before this token was left out
};

Columns read_columns(const TokenStore& store, std::span<const Piece> pieces) {
  std::int64_t total = 0;
  for (const Piece& piece : pieces) total += piece.count;
  const auto size = static_cast<std::size_t>(total);
  const StoreInfo& info = store.info();
  Columns out;
  out.tokens.resize(size);
  out.document.resize(size);
  out.after_skip.resize(size);
  if (info.has_labels) out.labels.resize(size);
  if (info.has_position_ids) out.positions.resize(size);
  if (info.has_segment_ids) out.segments.resize(size);
  std::size_t at = 0;
  std::int32_t document = -1;
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    if (p == 0 || !pieces[p].continues) ++document;
    const auto count = static_cast<std::size_t>(pieces[p].count);
    auto part = [&](std::vector<std::int32_t>& column) {
      return std::span<std::int32_t>(column).subspan(at, count);
    };
    store.read_tokens(pieces[p].begin, part(out.tokens));
    if (info.has_labels) store.read_labels(pieces[p].begin, part(out.labels));
    if (info.has_position_ids) store.read_position_ids(pieces[p].begin, part(out.positions));
    if (info.has_segment_ids) store.read_segment_ids(pieces[p].begin, part(out.segments));
    std::fill_n(out.document.begin() + static_cast<std::ptrdiff_t>(at), count, document);
    if (count > 0) out.after_skip[at] = pieces[p].after_skip;
    at += count;
  }
  return out;
}

// What is predicted after token t, when there is a token t + 1.
std::int32_t label_after(const Columns& c, std::size_t t, bool masked) {
  const bool same_document = c.document[t] == c.document[t + 1];
  if (c.after_skip[t + 1] || (!same_document && masked)) return kIgnoreLabel;
  if (!c.labels.empty()) return c.labels[t + 1];
  const bool other_segment =
      same_document && !c.segments.empty() && c.segments[t] != c.segments[t + 1];
  return other_segment ? kIgnoreLabel : c.tokens[t + 1];
}

// Positions of the runs that begin at `begins` (and end where the next begins, the last at `end`).
void place_runs(std::span<std::int32_t> positions, const std::vector<std::size_t>& begins,
                const PositionOptions& options, PositionKey key) {
  for (std::size_t i = 0; i < begins.size(); ++i) {
    const std::size_t end = i + 1 < begins.size() ? begins[i + 1] : positions.size();
    key.document = i;
    std::size_t at = begins[i];
    for (const PositionRun& run :
         draw_positions(options, key, static_cast<std::int64_t>(end - begins[i])))
      for (std::int64_t k = 0; k < run.count; ++k)
        positions[at++] = static_cast<std::int32_t>(run.first + k);
  }
}

}  // namespace

Batch empty_batch(std::int64_t sequences, std::int64_t sequence_length) {
  FARSPAN_CHECK(sequences >= 0 && sequence_length >= 1, "{} rows of {}", sequences,
                sequence_length);
  Batch out{.sequences = sequences, .sequence_length = sequence_length};
  const auto size = static_cast<std::size_t>(out.num_tokens());
  for (auto* column : {&out.tokens, &out.labels, &out.positions, &out.segments})
    column->resize(size);
  return out;
}

std::int32_t fill_row(Batch& batch, std::int64_t row, const TokenStore& store,
                      std::span<const Piece> pieces, const PackingOptions& options,
                      std::int32_t first_segment, PositionKey key) {
  FARSPAN_CHECK(row >= 0 && row < batch.sequences, "row {} of {}", row, batch.sequences);
  const bool masked = options.documents == Documents::kMasked;
  const Columns c = read_columns(store, pieces);
  const auto length = static_cast<std::size_t>(batch.sequence_length);
  FARSPAN_CHECK(c.tokens.size() <= length + 1, "{} tokens for a row of {}", c.tokens.size(),
                length);
  const std::size_t base = static_cast<std::size_t>(row) * length;
  const std::size_t filled = std::min(length, c.tokens.size());
  std::int32_t segment = first_segment;
  std::vector<std::size_t> run_begins = {0};  // where positions restart
  for (std::size_t t = 0; t < filled; ++t) {
    if (t > 0) {
      const bool document_changes = c.document[t] != c.document[t - 1];
      const bool segment_changes =
          !document_changes && !c.segments.empty() && c.segments[t] != c.segments[t - 1];
      if (segment_changes || (document_changes && masked)) ++segment;
      if (options.reset_positions && (document_changes || segment_changes)) run_begins.push_back(t);
    }
    batch.tokens[base + t] = c.tokens[t];
    batch.segments[base + t] = segment;
    if (!c.positions.empty()) batch.positions[base + t] = c.positions[t];
    batch.labels[base + t] = t + 1 < c.tokens.size() ? label_after(c, t, masked) : kIgnoreLabel;
  }
  if (c.positions.empty())
    place_runs(std::span(batch.positions).subspan(base, filled), run_begins, options.positions,
               key);
  if (filled > 0) ++segment;
  if (filled == length) return segment;
  for (std::size_t t = filled; t < length; ++t) {
    batch.tokens[base + t] = padding_id(store.info().tokenizer);
    batch.labels[base + t] = kIgnoreLabel;
    batch.positions[base + t] = static_cast<std::int32_t>(t - filled);
    batch.segments[base + t] = segment;
  }
  return segment + 1;
}

void cut_segments(Batch& batch, std::int64_t window) {
  FARSPAN_CHECK(window > 0, "a window of {}", window);
  std::int32_t before = 0, segment = -1;
  for (std::size_t t = 0; t < batch.segments.size(); ++t) {
    const std::int64_t column = static_cast<std::int64_t>(t) % batch.sequence_length;
    const std::int32_t own = batch.segments[t];
    if (t == 0 || own != before || column % window == 0) ++segment;
    before = own;
    batch.segments[t] = segment;
  }
}

std::int32_t padding_id(const TokenizerInfo& tokenizer) {
  if (tokenizer.pad >= 0) return tokenizer.pad;
  return tokenizer.eos >= 0 ? tokenizer.eos : 0;
}

}  // namespace farspan
