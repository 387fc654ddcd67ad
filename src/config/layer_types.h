// Which layers of a model have its window: what model.layer_types and model.sliding_window say of
// each.
//
//   if (layer_slides(model, 3)) ...
#pragma once

#include <cstdint>

#include "config/run_config.pb.h"

namespace farspan {

// Without layer_types all layers are alike, with the window if there is one. A layer that
// layer_types does not reach (a mistake that validate() reports) does not slide.
bool layer_slides(const config::Model& model, std::int64_t layer);

// Of num_hidden_layers.
std::int64_t num_sliding_layers(const config::Model& model);

}  // namespace farspan
