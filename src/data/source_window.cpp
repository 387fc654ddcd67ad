#include "data/source_window.h"

#include <algorithm>

#include "core/error.h"

namespace farspan {
namespace {

// The texts of the window, in its own numbering from 0: its documents, or all of it.
std::vector<TextRun> texts_of(std::span<const Piece> window, std::int64_t tokens, bool reset) {
  if (!reset) return {{0, tokens}};
  std::vector<TextRun> out;
  std::int64_t begin = 0;
  for (const Piece& piece : window) {
    const std::int64_t count = std::min(piece.count, tokens - begin);
    if (count > 0) out.push_back({begin, count});
    begin += piece.count;
  }
  return out;
}

// What the row shows, and the token after it.
std::vector<TextRun> kept_of(const std::vector<TextRun>& texts, const WindowCut& cut) {
  std::vector<TextRun> out;
  PositionKey key = cut.key;
  std::int64_t room = cut.sequence_length;
  for (std::size_t i = 0; i < texts.size() && room > 0; ++i) {
    const std::int64_t count = std::min(texts[i].count, room);
    key.document = i;
    for (const TextRun& run : draw_text(cut.options, key, count, texts[i].count))
      out.push_back({texts[i].begin + run.begin, run.count});
    room -= count;
  }
  FARSPAN_CHECK(room == 0, "{} tokens missing in a window of {}", room, cut.options.source_window);
  ++out.back().count;
  return out;
}

}  // namespace

std::vector<Piece> cut_window(std::span<const Piece> window, const WindowCut& cut) {
  std::vector<Piece> out;
  std::size_t document = 0, last_document = 0;
  std::int64_t document_begin = 0, last_end = 0;
  for (TextRun run :
       kept_of(texts_of(window, cut.options.source_window, cut.reset_positions), cut)) {
    bool after_skip = !out.empty() && run.begin != last_end;
    while (run.count > 0) {
      while (run.begin >= document_begin + window[document].count)
        document_begin += window[document++].count;
      const std::int64_t offset = run.begin - document_begin;
      const std::int64_t count = std::min(run.count, window[document].count - offset);
      const bool continues = !out.empty() && document == last_document;
      if (continues && !after_skip)
        out.back().count += count;
      else
        out.push_back({.begin = window[document].begin + offset,
                       .count = count,
                       .continues = continues,
                       .after_skip = after_skip});
      last_document = document;
      after_skip = false;
      run.begin += count;
      run.count -= count;
    }
    last_end = run.begin;
  }
  return out;
}

}  // namespace farspan
