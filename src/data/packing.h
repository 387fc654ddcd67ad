// From pieces of documents to one row of a batch: shifted labels, positions, segments.
//
//   Batch b = empty_batch(2, 2048);
//   next = fill_row(b, 0, store, pieces, {.documents = Documents::kMasked}, 0);
//
// Rules, for token t of a row of S tokens (pieces cover S tokens, or S + 1 where there is a next):
//   label      the next token in the same document, also one past the row's end; at a document's
//              last token -100 (masked) or the next document's first token (joined). A store's
//              `labels` are used in place of tokens, shifted: labels[t] = stored[t + 1]. Where text
//              was left out (source_window.h) nothing is predicted across the gap: -100.
//   segment    one per document piece (masked) or one per row (joined); a change of the store's
//              segment_ids inside a document starts a new one in either mode, and without stored
//              labels nothing is predicted across it. Ascending over the whole batch.
//   position   the store's position_ids; else what the sampler draws (data/positions.h) for each
//              run of tokens that counts from 0: with reset a segment or document piece of this row
//              (a document continued from the row before starts anew), else the whole row.
//              `sequential` gives the offset in the run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/batch.h"
#include "data/positions.h"
#include "data/token_store.h"

namespace farspan {

enum class Documents {
  kMasked,  // attention stays inside a document
  kJoined,  // attention crosses document borders
};

struct PackingOptions {
  Documents documents = Documents::kMasked;
  bool reset_positions = true;
  PositionOptions positions{};
};

// A run of tokens of one document in a store.
struct Piece {
  std::int64_t begin = 0;  // first token, in the store's numbering
  std::int64_t count = 0;
  bool continues = false;   // of the same document as the piece before it
  bool after_skip = false;  // text between the piece before it and this one was left out
};

// A batch with room for `sequences` rows, not filled.
Batch empty_batch(std::int64_t sequences, std::int64_t sequence_length);

// Fills row `row` from `pieces`, at most sequence_length + 1 tokens; what is missing is padding
// (`pad` token, label -100, a segment of its own). Segments start at `first_segment`; returns the
// first number not used, for the next row. `key`: whose positions a sampler draws; documents are
// counted here.
std::int32_t fill_row(Batch& batch, std::int64_t row, const TokenStore& store,
                      std::span<const Piece> pieces, const PackingOptions& options,
                      std::int32_t first_segment, PositionKey key = {});

// Cuts segments where each row is at a multiple of `window` tokens: token i then sees tokens
// floor(i / window) * window to i of its document (SkyLadder, arXiv 2503.15450). Labels and
// positions stay.
void cut_segments(Batch& batch, std::int64_t window);

// The id that padding holds: the tokenizer's pad, else eos, else 0. Never scored.
std::int32_t padding_id(const TokenizerInfo& tokenizer);

}  // namespace farspan
