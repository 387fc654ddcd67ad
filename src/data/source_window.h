// PoSE over text that is longer than a sample (Zhu et al. 2023, section 3.3; its published code's
// lt2, rt2): of a window of W tokens of the stream, the S that a row shows. What lies between them
// is skipped on purpose and never shown in this epoch: W - S tokens of each window.
//
//   pieces = cut_window(stream_pieces, {.sequence_length = 2048, .options = positions, .key =
//   key}); fill_row(batch, row, store, pieces, ...);         // draws the positions that go with it
//
// The window's documents (as one text where positions do not restart) fill the row in order, each
// with as many tokens as it has and there is room for. The one that has more than that, the row's
// last, is cut into chunks by draw_text; so with one document per window the row is the published
// draw.
#pragma once

#include <span>
#include <vector>

#include "data/packing.h"

namespace farspan {

struct WindowCut {
  std::int64_t sequence_length = 0;  // S
  bool reset_positions = true;       // as in PackingOptions
  PositionOptions options;           // pose, with source_window W >= S
  PositionKey key;                   // documents are counted here, as fill_row does
};

// `window`: pieces of W tokens and of the one after them. Returns pieces of S + 1 tokens: the last
// is what follows the row's last token in the text.
std::vector<Piece> cut_window(std::span<const Piece> window, const WindowCut& cut);

}  // namespace farspan
