// "Did you mean": the words nearest to a mistyped one.
//
//   nearest("trian", {"train", "data"})     -> {"train"}
//   did_you_mean({"train", "data"})         -> "did you mean train or data?"
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace farspan {

// Optimal string alignment distance (Damerau 1964, restricted): insertions, deletions,
// substitutions and swaps of neighbours cost 1 each. Case and `-` against `_` cost nothing.
int edit_distance(std::string_view a, std::string_view b);

// The largest distance at which a word still counts as a typo: 1 up to 3 letters, 2 up to 7,
// then 3.
int typo_limit(std::string_view word);

// At most `count` candidates within typo_limit, nearest first; equally near ones keep their order.
std::vector<std::string> nearest(std::string_view word, std::span<const std::string> candidates,
                                 std::size_t count = 3);

// "did you mean a, b or c?"; empty for no words.
std::string did_you_mean(std::span<const std::string> words);

// "a, b or c".
std::string join_or(std::span<const std::string> words);

// "a|b|c" -> {a, b, c}; "" -> {}.
std::vector<std::string> split_words(std::string_view text, char separator = '|');

}  // namespace farspan
