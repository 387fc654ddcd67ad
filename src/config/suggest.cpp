#include "config/suggest.h"

#include <algorithm>

namespace farspan {
namespace {

// Beyond this a word is no typo of a key, and the quadratic table not worth its time.
constexpr std::size_t kLongestWord = 100;

std::string normalise(std::string_view word) {
  std::string out(word);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '-') c = '_';
  }
  return out;
}

}  // namespace

int edit_distance(std::string_view a_raw, std::string_view b_raw) {
  if (a_raw.size() > kLongestWord || b_raw.size() > kLongestWord)
    return static_cast<int>(kLongestWord);
  const std::string a = normalise(a_raw), b = normalise(b_raw);
  const std::size_t width = b.size() + 1;
  std::vector<int> d((a.size() + 1) * width);
  for (std::size_t i = 0; i <= a.size(); ++i) d[i * width] = static_cast<int>(i);
  for (std::size_t j = 0; j <= b.size(); ++j) d[j] = static_cast<int>(j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const int cost = a[i - 1] == b[j - 1] ? 0 : 1;
      int best = std::min({d[(i - 1) * width + j] + 1, d[i * width + j - 1] + 1,
                           d[(i - 1) * width + j - 1] + cost});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        best = std::min(best, d[(i - 2) * width + j - 2] + 1);
      d[i * width + j] = best;
    }
  }
  return d.back();
}

int typo_limit(std::string_view word) { return word.size() <= 3 ? 1 : word.size() <= 7 ? 2 : 3; }

std::vector<std::string> nearest(std::string_view word, std::span<const std::string> candidates,
                                 std::size_t count) {
  std::vector<std::pair<int, std::size_t>> found;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const int distance = edit_distance(word, candidates[i]);
    if (distance <= typo_limit(word)) found.emplace_back(distance, i);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> out;
  for (std::size_t i = 0; i < std::min(count, found.size()); ++i)
    out.push_back(candidates[found[i].second]);
  return out;
}

std::string join_or(std::span<const std::string> words) {
  std::string out;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0) out += i + 1 == words.size() ? " or " : ", ";
    out += words[i];
  }
  return out;
}

std::string did_you_mean(std::span<const std::string> words) {
  return words.empty() ? "" : "did you mean " + join_or(words) + "?";
}

std::vector<std::string> split_words(std::string_view text, char separator) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(separator), text.size());
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

}  // namespace farspan
