// What the cross-field rules share: the configuration, where its values came from, and the list of
// issues. Internal to validate().
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/validate.h"

namespace farspan {

// Positions that training reaches are below this: the longest sequence, or what a sampler reaches.
std::int64_t end_of_positions(const RunConfig& config);

class Rules {
 public:
  Rules(const LoadedConfig& loaded, const ValidateOptions& options)
      : loaded_(loaded), config_(loaded.config), options_(options) {}

  // `also`: other keys that the rule read; an earlier issue with one of them hides this one.
  Issue& add(const std::string& key, std::string what, std::string fix,
             std::vector<std::string> also = {});
  // A value that nothing reads ("is read by wsd only, and schedule.type is cosine"): a mistake when
  // typed for this run, worth a word when in the file.
  void add_unread(const std::string& key, const std::string& reader, const std::string& chooser,
                  const std::string& chosen);

  // Where a value came from (LoadedConfig::origins).
  std::string origin(const std::string& key) const;

  const RunConfig& config() const { return config_; }
  const ValidateOptions& options() const { return options_; }
  std::vector<Issue> take() { return std::move(issues_); }

 private:
  // Where the key was given, or the file that lacks it.
  std::string where(const std::string& key) const;

  const LoadedConfig& loaded_;
  const RunConfig& config_;
  const ValidateOptions& options_;
  std::vector<Issue> issues_;
};

// How the origin of an implied parallel.attention begins that replaces a given one.
inline constexpr std::string_view kReplacedByInvariant = "parallel.invariant, instead of ";

// Masks, position encodings and strategies of attention: what cannot be combined.
void check_attention(Rules& rules);
// parallel.attention_kernel and parallel.deterministic.
void check_attention_kernel(Rules& rules);
// Rotary scaling.
void check_rotary(Rules& rules);
// Samplers of positions.
void check_positions(Rules& rules);
// train.cuda_graphs.
void check_graphs(Rules& rules);

// curriculum.*, but for what each stage is checked for by itself.
void check_curriculum(Rules& rules);

// The largest divisor of n (at least 1) that is at most `limit`; 1 when there is none.
std::int64_t largest_divisor(std::int64_t n, std::int64_t limit);
// evaluation.
void check_evaluation(Rules& rules);

// Divisors of n, ascending (n below 2^40).
std::vector<std::int64_t> divisors_of(std::int64_t n);
// "1, 2 or 4": the first few of them.
std::string one_of(const std::vector<std::int64_t>& numbers);

}  // namespace farspan
