#include "parallel/attention_pattern.h"

#include <algorithm>

namespace farspan {

std::string AttentionPattern::description() const {
  std::string text = causal ? "causal" : "both directions";
  if (window > 0) text += fmt::format(", window {}", window);
  if (sinks > 0) text += fmt::format(" + {} sinks", sinks);
  return text;
}

std::int64_t AttentionPattern::row_stride() const { return 1; }

LayerPatterns layer_patterns(const config::Model& model) {
  LayerPatterns out;
  out.patterns.emplace_back();
  out.of_layer.assign(static_cast<std::size_t>(model.num_hidden_layers()), 0);
  return out;
}

}  // namespace farspan
