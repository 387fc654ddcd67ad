#include "config/rules.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/suggest.h"

namespace farspan {
namespace {

constexpr std::int64_t kMostTried = std::int64_t{1} << 20;  // enough for numbers below 2^40

}  // namespace

std::int64_t end_of_positions(const RunConfig& config) {
  std::int64_t end = config.train().sequence_length();
  const config::Curriculum& curriculum = config.curriculum();
  if (curriculum.has_max_length()) end = std::max(end, curriculum.max_length());
  for (const config::Stage& stage : curriculum.stages()) {
    end = std::max(end, stage.sequence_length());
    end = std::max(end, stage.positions().target_context());
  }
  const config::Positions& positions = config.positions();
  if (positions.sampler() == "sequential") return end;
  return std::max(end, positions.target_context() +
                           (positions.target_margin() ? positions.original_context() : 0));
}

Issue& Rules::add(const std::string& key, std::string what, std::string fix,
                  std::vector<std::string> also) {
  issues_.push_back({.key = key,
                     .where = where(key),
                     .what = std::move(what),
                     .fix = std::move(fix),
                     .also = std::move(also)});
  return issues_.back();
}

void Rules::add_unread(const std::string& key, const std::string& reader,
                       const std::string& chooser, const std::string& chosen) {
  const auto origin = loaded_.origins.find(key);
  const bool typed = origin != loaded_.origins.end() && origin->second == "command line";
  add(key, fmt::format("is read by {} only, and {} is {}", reader, chooser, chosen),
      fmt::format("leave it out, or change {}", chooser), {chooser})
      .note = !typed;
}

std::string Rules::origin(const std::string& key) const {
  const auto found = loaded_.origins.find(key);
  return found == loaded_.origins.end() ? std::string() : found->second;
}

std::string Rules::where(const std::string& key) const {
  const auto origin = loaded_.origins.find(key);
  if (origin == loaded_.origins.end()) return loaded_.file;
  if (origin->second == "default" || origin->second.starts_with("implied"))
    return fmt::format("{} ({})", loaded_.file, origin->second);
  return origin->second;
}

std::int64_t largest_divisor(std::int64_t n, std::int64_t limit) {
  constexpr std::int64_t kMost = std::int64_t{1} << 26;  // the root of batch_tokens' limit
  std::int64_t best = 1;
  for (std::int64_t low = 1; low * low <= n && low <= kMost; ++low) {
    if (n % low != 0) continue;
    if (low <= limit) best = std::max(best, low);
    if (n / low <= limit) best = std::max(best, n / low);
  }
  return best;
}

std::vector<std::int64_t> divisors_of(std::int64_t n) {
  std::vector<std::int64_t> low, high;
  for (std::int64_t d = 1; d * d <= n && d <= kMostTried; ++d) {
    if (n % d != 0) continue;
    low.push_back(d);
    if (d != n / d) high.push_back(n / d);
  }
  low.insert(low.end(), high.rbegin(), high.rend());
  return low;
}

std::string one_of(const std::vector<std::int64_t>& numbers) {
  constexpr std::size_t kShown = 8;
  std::vector<std::string> words;
  for (std::size_t i = 0; i < std::min(numbers.size(), kShown); ++i)
    words.push_back(fmt::to_string(numbers[i]));
  return join_or(words);
}

}  // namespace farspan
