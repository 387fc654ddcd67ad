#include "model/rotary.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "core/error.h"

namespace farspan {
namespace {

std::vector<double> frequencies(double theta, std::int64_t head_dim) {
  std::vector<double> omega;
  for (std::int64_t j = 0; j < head_dim / 2; ++j)
    omega.push_back(std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim)));
  return omega;
}

void scale_linear(RotaryTable& table, const RotaryArgs& args) {
  for (double& omega : table.inv_freq) omega /= args.scaling.factor();
}

// One base for all pairs: the first keeps its frequency, the last is divided by s.
void scale_ntk(RotaryTable& table, const RotaryArgs& args) {
  const auto d = static_cast<double>(args.head_dim);
  FARSPAN_CHECK(args.head_dim > 2, "NTK scaling of head dimension {}", args.head_dim);
  table.inv_freq =
      frequencies(args.theta * std::pow(args.scaling.factor(), d / (d - 2)), args.head_dim);
}

// Grows with the document, so that its last position is always within what the base reaches.
void scale_dynamic(RotaryTable& table, const RotaryArgs& args) {
  const auto original = static_cast<double>(args.scaling.original_context());
  const auto length = static_cast<double>(args.document_length);
  if (length <= original) return;
  const auto d = static_cast<double>(args.head_dim);
  FARSPAN_CHECK(args.head_dim > 2, "NTK scaling of head dimension {}", args.head_dim);
  const double s = args.scaling.factor();
  table.inv_freq = frequencies(args.theta * std::pow(s * length / original - (s - 1), d / (d - 2)),
                               args.head_dim);
}

void scale_longrope(RotaryTable& table, const RotaryArgs& args) {
  const config::RopeScaling& scaling = args.scaling;
  const bool within = args.document_length <= scaling.original_context();
  const auto& factors = within ? scaling.short_factor() : scaling.long_factor();
  FARSPAN_CHECK(factors.size() == static_cast<int>(table.inv_freq.size()), "{} factors of {} pairs",
                factors.size(), table.inv_freq.size());
  for (int j = 0; j < factors.size(); ++j)
    table.inv_freq[static_cast<std::size_t>(j)] /= factors[j];
  table.attention_scale =
      scaling.has_attention_factor()
          ? scaling.attention_factor()
          : std::sqrt(1 + std::log(scaling.factor()) /
                              std::log(static_cast<double>(scaling.original_context())));
}

void scale_llama3(RotaryTable& table, const RotaryArgs& args) {
  const config::RopeScaling& scaling = args.scaling;
  const auto context = static_cast<double>(scaling.original_context());
  const double low = scaling.low_freq_factor(), high = scaling.high_freq_factor();
  for (double& omega : table.inv_freq) {
    const double turns = context * omega / (2 * std::numbers::pi);  // context / wavelength
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    omega = (1 - kept) * omega / scaling.factor() + kept * omega;
  }
}

void scale_yarn(RotaryTable& table, const RotaryArgs& args) {
  const config::RopeScaling& scaling = args.scaling;
  const double s = scaling.factor();
  const auto border = [&](double rotations) {
    return yarn_dimension(rotations, args.head_dim, args.theta, scaling.original_context());
  };
  const double low = std::max(std::floor(border(scaling.beta_fast())), 0.0);
  const double last = static_cast<double>(args.head_dim - 1);
  double high = std::min(std::ceil(border(scaling.beta_slow())), last);
  if (high == low) high += 0.001;  // a step instead of a ramp, as transformers has it
  for (std::size_t j = 0; j < table.inv_freq.size(); ++j) {
    double& omega = table.inv_freq[j];
    const double scaled = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    omega = scaling.form() == "pose" ? omega / (scaled * s + 1 - scaled)
                                     : omega / s * scaled + omega * (1 - scaled);
  }
  table.attention_scale =
      scaling.has_attention_factor() ? scaling.attention_factor() : 0.1 * std::log(s) + 1;
}

}  // namespace

double yarn_dimension(double rotations, std::int64_t head_dim, double theta,
                      std::int64_t original_context) {
  return static_cast<double>(head_dim) *
         std::log(static_cast<double>(original_context) / (2 * std::numbers::pi * rotations)) /
         (2 * std::log(theta));
}

RotaryTable rotary_table(const RotaryArgs& args) {
  FARSPAN_CHECK(args.head_dim >= 0 && args.head_dim % 2 == 0, "head dimension {}", args.head_dim);
  RotaryTable table{.inv_freq = frequencies(args.theta, args.head_dim)};
  const std::string& type = args.scaling.type();
  if (type == "linear")
    scale_linear(table, args);
  else if (type == "ntk")
    scale_ntk(table, args);
  else if (type == "yarn")
    scale_yarn(table, args);
  else if (type == "llama3")
    scale_llama3(table, args);
  else if (type == "dynamic")
    scale_dynamic(table, args);
  else if (type == "longrope")
    scale_longrope(table, args);
  else
    FARSPAN_CHECK(type == "none", "rotary scaling {}", type);
  return table;
}

bool depends_on_length(const config::RopeScaling& scaling) {
  return scaling.type() == "dynamic" || scaling.type() == "longrope";
}

RotaryTables rotary_tables(RotaryArgs args, const std::vector<std::int64_t>& document_lengths) {
  // longrope has one table for all that is longer than L.
  const std::int64_t original = args.scaling.original_context();
  const bool two = args.scaling.type() == "longrope";
  std::map<std::int64_t, std::int32_t> rows;  // by what the table is made for
  RotaryTables out;
  const auto row_of = [&](std::int64_t length) {
    const auto [it, added] = rows.try_emplace(length, static_cast<std::int32_t>(rows.size()));
    if (added) {
      args.document_length = length;
      const std::vector<double> table = rotary_table(args).inv_freq;
      out.inv_freq.insert(out.inv_freq.end(), table.begin(), table.end());
    }
    return it->second;
  };
  row_of(0);
  if (two) row_of(original + 1);
  for (const std::int64_t length : document_lengths)
    out.ids.push_back(row_of(length <= original ? 0 : two ? original + 1 : length));
  return out;
}

}  // namespace farspan
