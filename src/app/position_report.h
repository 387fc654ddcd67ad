// What a sampler of positions shows a model: which distances between tokens of one document, and
// how often.
//
//   PositionReport r = measure_positions(options, {.samples = 20000, .tokens = 4096, .seed = 1});
//   position_json(r), position_text(r), draw_positions_plot(r, "coverage.svg")
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "config/curriculum.h"
#include "data/positions.h"

namespace farspan::app {

inline constexpr std::size_t kDistanceBins = 64;

struct PositionQuestion {
  std::int64_t samples = 0;  // documents drawn, sample 0, 1, ...
  std::int64_t tokens = 0;   // of each
  std::uint64_t seed = 1;
  int stage = -1;  // of the curriculum, to be named; -1: none
};

struct PositionReport {
  PositionQuestion question;
  PositionOptions options;
  std::int64_t end = 0;  // distances are below it; bin b holds [b end / 64, (b + 1) end / 64)
  // Samples whose distances were counted: fewer than drawn where positions jump so often that all
  // pairs of runs would be too many.
  std::int64_t counted = 0;
  std::array<double, kDistanceBins> histogram{};  // share of a sample's pairs of tokens; sums to 1
  std::array<double, kDistanceBins> coverage{};   // share of samples that show a distance, mean
  std::int64_t max_position = 0;
  double first_chunk_mean = 0;    // tokens before the first jump
  double share_of_distances = 0;  // of 1 .. end - 1, those that some counted sample shows
};

// CHECKs what draw_positions does.
PositionReport measure_positions(const PositionOptions& options, const PositionQuestion& question);

// Where stages show other distances than `base`, the configuration outside of them: which do, in a
// line for all that are alike, and how to ask for one. Else empty.
std::string stage_positions_note(const RunConfig& base, const std::vector<StagePlan>& stages);

// Keys samples, histogram, max_position, first_chunk_mean, share_of_distances_covered, and more.
nlohmann::ordered_json position_json(const PositionReport& report);
std::string position_text(const PositionReport& report);
// .svg or .png, by gnuplot (core/plot.h). Throws Error(kUsage).
void draw_position_plot(const PositionReport& report, const std::filesystem::path& path);

}  // namespace farspan::app
