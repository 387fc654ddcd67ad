#include "model/rotary.h"

#include <algorithm>
#include <cmath>
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
  else if (type != "none")
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("rotary scaling '{}' is not built yet", type),
                 .where = "model.rope.scaling.type",
                 .fix = "use none, linear, ntk, yarn or llama3"});
  return table;
}

}  // namespace farspan
