#include "model/position.h"

#include <bit>
#include <cmath>
#include <utility>

#include "config/layer_types.h"
#include "core/error.h"

namespace farspan {
namespace {

// zeta_c = (2c/d + gamma) / (1 + gamma), gamma = 0.4 (Sun et al. 2022, eq. 16).
std::vector<double> xpos_decay(std::int64_t head_dim, double scale_base) {
  constexpr double kGamma = 0.4;
  std::vector<double> decay;
  for (std::int64_t c = 0; c < head_dim / 2; ++c) {
    const double share = 2.0 * static_cast<double>(c) / static_cast<double>(head_dim);
    decay.push_back(std::log2((share + kGamma) / (1.0 + kGamma)) / scale_base);
  }
  return decay;
}

}  // namespace

std::vector<double> alibi_slopes(std::int64_t num_heads) {
  FARSPAN_CHECK(num_heads > 0, "{} heads", num_heads);
  const auto whole =
      static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(num_heads)));
  const auto slope = [](std::int64_t h, std::int64_t heads) {
    return std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(heads));
  };
  std::vector<double> slopes;
  for (std::int64_t h = 1; h <= whole; ++h) slopes.push_back(slope(h, whole));
  for (std::int64_t h = 1; h <= num_heads - whole; ++h)
    slopes.push_back(slope(2 * h - 1, 2 * whole));
  return slopes;
}

std::optional<RotaryArgs> rotary_args(const config::Model& model) {
  if (model.position() != "rope" && model.position() != "xpos") return std::nullopt;
  return RotaryArgs{.theta = model.rope().theta(),
                    .head_dim = model.head_dim(),
                    .scaling = model.rope().scaling()};
}

std::optional<RotaryArgs> length_dependent_rotary(const config::Model& model) {
  auto args = rotary_args(model);
  if (args && !depends_on_length(args->scaling)) args.reset();
  return args;
}

bool layer_is_scaled(const config::Model& model, std::int64_t layer) {
  const config::RopeScaling& scaling = model.rope().scaling();
  return scaling.type() == "none" || scaling.layers() == "all" || !layer_slides(model, layer);
}

RotaryTable unscaled_rotary(const config::Model& model) {
  std::optional<RotaryArgs> args = rotary_args(model);
  if (!args) return {};
  args->scaling = {};
  return rotary_table(*args);
}

PositionTable make_position_table(const config::Model& model, std::int64_t document_length) {
  const std::string& position = model.position();
  std::optional<RotaryArgs> rotary = rotary_args(model);
  PositionTable table;
  if (rotary) {
    rotary->document_length = document_length;
    RotaryTable rotations = rotary_table(*rotary);
    table.inv_freq = std::move(rotations.inv_freq);
    table.attention_scale = rotations.attention_scale;
  }
  if (position == "sinusoidal")
    table.sinusoid = rotary_table({.head_dim = model.hidden_size()}).inv_freq;
  if (position == "xpos") table.decay = xpos_decay(model.head_dim(), model.xpos_scale_base());
  if (position == "alibi") table.slopes = alibi_slopes(model.num_attention_heads());
  return table;
}

}  // namespace farspan
