#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "config/schema.h"
#include "config/validate.h"

namespace farspan {
namespace {

// What a checkpoint's weights, optimizer state and place in the data depend on. Everything else
// (steps, rates, layout of ranks, cadences, folders, evaluation) may change between starts.
constexpr const char* kFixedKeys[] = {
    "seed",
    "model",
    "data.train",
    "data.packing",
    "data.documents",
    "train.sequence_length",
    "train.batch_tokens",
    "train.precision",
    "optimizer.type",
    "positions",
    "curriculum",
};

bool is_fixed(const std::string& key) {
  return std::any_of(std::begin(kFixedKeys), std::end(kFixedKeys), [&](std::string_view fixed) {
    return key.starts_with(fixed) &&
           (key.size() == fixed.size() || key[fixed.size()] == '.' || key[fixed.size()] == '[');
  });
}

std::map<std::string, std::string> fixed_values(const RunConfig& config) {
  std::map<std::string, std::string> out;
  visit_leaves(config, [&](const std::string& key, const auto& field, const auto& parent) {
    if (!is_fixed(key)) return;
    out[key] = is_section_field(field) ? "nothing" : value_text(parent, field);
  });
  return out;
}

}  // namespace

std::vector<std::string> resume_conflicts(const RunConfig& saved, const RunConfig& current) {
  const auto before = fixed_values(saved), now = fixed_values(current);
  std::vector<std::string> out;
  const auto compare = [&](const std::string& key) {
    const auto a = before.find(key), b = now.find(key);
    const std::string old_value = a == before.end() ? "nothing" : a->second;
    const std::string new_value = b == now.end() ? "nothing" : b->second;
    if (old_value != new_value)
      out.push_back(fmt::format("{}: {} in the saved run, {} now", key, old_value, new_value));
  };
  for (const auto& [key, value] : before) compare(key);
  for (const auto& [key, value] : now)
    if (before.find(key) == before.end()) compare(key);
  return out;
}

}  // namespace farspan
