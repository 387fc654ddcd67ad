#include "config/layer_types.h"

namespace farspan {

bool layer_slides(const config::Model& model, std::int64_t layer) {
  if (model.sliding_window() == 0) return false;
  if (model.layer_types().empty()) return true;
  return layer < model.layer_types_size() &&
         model.layer_types(static_cast<int>(layer)) == "sliding_attention";
}

std::int64_t num_sliding_layers(const config::Model& model) {
  std::int64_t count = 0;
  for (std::int64_t layer = 0; layer < model.num_hidden_layers(); ++layer)
    count += layer_slides(model, layer) ? 1 : 0;
  return count;
}

}  // namespace farspan
