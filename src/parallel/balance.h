// The `balanced` layout: packed documents cut over the ring so that attention area, tokens and
// forwarded rows are weighed together; and how good any layout is.
//
//   RowArea area(pattern, kv_heads);
//   BalanceRequest request{.documents = lengths, .ranks = 32, .areas = {&area, 1}};
//   SequenceLayout layout = balanced_layout(request);
//   LayoutQuality q = measure(layout, request);
//   q.rows_forwarded / ring_rows(request);               // share of a full ring's traffic
//   traffic_lower_bound(request) / ring_rows(request);   // what no layout within the caps beats
//
// Keys and values travel the ring one way, o -> o + 1 -> ... (mod P), each row as far as the
// farthest place that needs it: a document must lie along the ring with its head upstream of its
// tail. Aims: area at most kAreaCap and tokens at most kTokenCap times the mean (as far as whole
// tokens and blocks allow), rows forwarded at most 1.5 times the lower bound plus 4% of a full
// ring's. The caps hold for whatever lengths were tried (docs/benchmarks/balanced_layout.md); the
// rows for all usual ones over 16 places and more. Few places with a few large documents can need
// more: they must share documents, which the bound, taken document by document, does not see.
//
// A pure function of the request: every rank computes the same layout. No clock is read; work is
// bounded by a count of steps (about 6 ms for 1M tokens over 32 places, 20 at worst).
#pragma once

#include <cstdint>
#include <span>

#include "parallel/attention_pattern.h"
#include "parallel/sequence_layout.h"

namespace farspan {

inline constexpr double kAreaCap = 1.05;   // attention area of a place, times the mean
inline constexpr double kTokenCap = 1.06;  // tokens of a place, times the mean

struct BalanceRequest {
  std::span<const std::int64_t> documents;  // lengths > 0, laid end to end in the global index
  int ranks = 1;                            // places of the ring
  std::span<const RowArea> areas;           // the layers' distinct patterns
  std::span<const double> weights = {};     // of the areas, in a mean over layers; empty: equal
  // Invariant mode: cuts only at multiples of `block` tokens from the start of a sequence of
  // `sequence_length` tokens, which no document crosses.
  std::int64_t block = 1;
  std::int64_t sequence_length = 0;  // read when block > 1
};

// Each place's runs ascend in the global index, and runs that touch are one.
SequenceLayout balanced_layout(const BalanceRequest& request);

struct LayoutQuality {
  double area_max_over_mean = 1;
  double tokens_max_over_mean = 1;
  double rows_forwarded = 0;      // rows x hops of one layer's forward pass, mean over layers
  std::int64_t runs = 0;          // of all places
  std::int64_t shortest_run = 0;  // tokens
  std::int64_t max_runs_of_place = 0;
};

// Exact for any layout and any pattern of kNone kind (windows and sinks, causal or not). Sparse
// patterns count each later row within reach() as a user, which the plan may undercut.
LayoutQuality measure(const SequenceLayout& layout, const BalanceRequest& request);

// Rows x hops that no layout within the two caps can undercut, mean over layers.
//
// Take row j of a document, and its users U = rows [j, min(n, j + reach)) (all of them see row j;
// j itself is among them). A place holds at most kTokenCap S/P tokens and kAreaCap A/P area, so U
// lies on at least K(j) = max(ceil(tokens(U) P / (kTokenCap S)), ceil(area(U) P / (kAreaCap A)))
// different places. One is j's own; the row must get to the other K(j) - 1, and h hops one way
// visit h places. Hence at least the sum over rows of K(j) - 1. Without causality the users are
// the whole document (with a window: tokens ahead only are counted). Sparse patterns count 0:
// which of the later rows need a row is not a range there.
//
// One document over 32 places: 64.0% of the ring's; reached: 72.2%. (The design's table has 67%,
// 74% at area 1.00: bounds that also use that all places share the same total. This one does not.)
double traffic_lower_bound(const BalanceRequest& request);

// S (P - 1): every row to every other place.
double ring_rows(const BalanceRequest& request);

}  // namespace farspan
