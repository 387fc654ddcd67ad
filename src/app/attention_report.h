// What `farspan inspect attention` prints: one JSON object, or text with a drawing.
//
//   AttentionAnswer a = answer(read_question(options));
//   fmt::print("{}", attention_text(a, {.unicode = true}));
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/attention_input.h"

namespace farspan::app {

struct AttentionAnswer {
  AttentionCase problem;  // as chosen, where something was auto
  AttentionSummary summary;
  AttentionSpeeds speeds;
  PredictedTime time;
  std::optional<ParallelChoice> choice;  // where something was auto
  std::vector<std::string> assumed;
};

AttentionAnswer answer(const AttentionQuestion& question);

// Keys: docs/inspect_attention.md.
nlohmann::ordered_json attention_json(const AttentionAnswer& answer);

struct TextOptions {
  bool unicode = false;
};
std::string attention_text(const AttentionAnswer& answer, const TextOptions& options);

// ---- words and numbers shared with the picture
// ---------------------------------------------------

std::string grouped_digits(std::int64_t n);            // 1,234,567
std::string short_number(double value);                // 3.4e8 -> "340 M"; 12 -> "12"
std::string bytes_text(double bytes);                  // "1.23 GB"
std::string seconds_text(double seconds);              // "12.3 ms"
std::string percent_text(double part, double whole);   // "12.0%"; whole 0: "-"
std::string ratio_text(double part, double whole);     // "1.34 x"; whole 0: "-"
std::string documents_text(const AttentionCase& c);    // "342 documents of 1 to 24,581 tokens ..."
double mean_area(const AttentionSummary& s);           // per rank
double bytes_all_to_all(const AttentionSummary& s);    // of the forward pass: outside the hops
std::string bound_text(const AttentionAnswer& a);      // "1.7 GB"; "unknown" for sparse patterns
std::string bound_meaning();                           // "the least of any ring with area ..."
std::string strategy_text(const AttentionSummary& s);  // "zigzag ring over 32 ranks"
std::string patterns_text(const AttentionSummary& s);  // "causal, window 4096 (3/4 of layers); ..."

// Row r of the grid is the mean of ranks [first[r], first[r + 1]), column c the sum over hops
// alike: at most `rows` and `columns` of them.
struct AreaGrid {
  std::vector<std::vector<double>> values;  // [row][column], pairs per rank
  std::vector<int> first_rank, first_hop;   // one more than rows and columns
  double largest = 0;
};
AreaGrid area_grid(const AttentionSummary& summary, int rows, int columns);

}  // namespace farspan::app
