// The release gate of attention under any sharding: {P} x {layout} x {strategy} x {packed or not} x
// {mask} x {accumulation} x {data ranks}, each one optimizer step of the real engine on thread
// ranks in fp32, against one rank.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "support/engine_runs.h"
#include "support/tiny_config.h"

namespace farspan::testing {

struct MatrixCell {
  int context = 1, ulysses = 1;
  std::string layout, strategy, mask;
  bool packed = true;
  int accumulation = 1, data = 1;

  std::string name() const {
    return fmt::format("P {} {} {}{} {} {} accumulation {} data {}", context, layout, strategy,
                       strategy == "hybrid" ? fmt::format(" U={}", ulysses) : "", mask,
                       packed ? "packed" : "one document", accumulation, data);
  }
};

// Largest deviations from one rank.
struct Deviation {
  double loss = 0, grad_norm = 0, gradient = 0;
  std::string where;  // the parameter with the largest deviation

  bool within_limits() const {  // design: whole model in fp32, P ranks against 1
    return loss <= 1e-6 && grad_norm <= 1e-5 && gradient <= 1e-4;
  }
};

inline const std::vector<std::string>& matrix_layouts() {
  static const std::vector<std::string> kLayouts = {"contiguous", "zigzag", "striped", "balanced"};
  return kLayouts;
}

inline const std::vector<std::string>& matrix_strategies() {
  static const std::vector<std::string> kStrategies = {"ring", "allgather", "ulysses", "hybrid"};
  return kStrategies;
}

// The masks of the matrix proper, and others that run with one data rank and one micro-batch.
inline const std::vector<std::string>& matrix_masks() {
  static const std::vector<std::string> kMasks = {"full", "window", "sinks+window", "alibi"};
  return kMasks;
}

inline const std::vector<std::string>& further_masks() {
  static const std::vector<std::string> kMasks = {
      "xpos", "none", "mixed layers", "sinks+alibi", "dilated", "bigbird", "s2"};
  return kMasks;
}

// "scaled layers": mixed, and the one without a window is scaled. 2 layers; 24 query heads on 4 KV
// heads: groups of 6, which 3, 4 and 8 ranks cut.
inline config::RunConfig matrix_model(const std::string& mask) {
  config::RunConfig config = tiny_config();
  auto& model = *config.mutable_model();
  model.set_num_attention_heads(24);
  model.set_num_key_value_heads(4);
  model.set_head_dim(8);
  const bool scaled = mask == "scaled layers", mixed = mask == "mixed layers" || scaled;
  const bool windowed = mask == "window" || mixed || mask.starts_with("sinks");
  if (windowed) model.set_sliding_window(13);
  if (mask.starts_with("sinks")) model.set_attention_sinks(3);
  if (mask == "alibi" || mask == "sinks+alibi") model.set_position("alibi");
  if (mask == "xpos") {
    model.set_position("xpos");
    model.set_xpos_scale_base(16);
  }
  if (mask == "none") model.set_position("none");
  if (mixed)
    for (const char* type : {"sliding_attention", "full_attention"}) model.add_layer_types(type);
  if (scaled) {
    auto& scaling = *model.mutable_rope()->mutable_scaling();
    scaling.set_type("yarn");
    scaling.set_original_context(16);
    scaling.set_factor(8);
    scaling.set_layers("full_attention");
  }
  auto& sparse = *model.mutable_sparse_attention();
  if (mask == "dilated") {
    sparse.set_type("dilated");
    for (const std::int64_t length : {8, 36}) sparse.add_segment_lengths(length);
    for (const std::int64_t dilation : {1, 3}) sparse.add_dilations(dilation);
  } else if (mask == "bigbird") {
    sparse.set_type("bigbird");
    sparse.set_block_size(5);
    sparse.set_window_blocks(2);
    sparse.set_random_blocks(2);
  } else if (mask == "s2") {
    sparse.set_type("s2");
    sparse.set_group_size(14);
  }
  auto& train = *config.mutable_train();
  train.set_sequence_length(89);  // prime: nothing divides
  train.set_batch_tokens(4 * 89);
  train.set_steps(1);
  return config;
}

inline std::vector<MatrixCell> cells_of(const std::vector<std::string>& masks,
                                        const std::vector<int>& accumulations,
                                        const std::vector<int>& data_ranks) {
  std::vector<MatrixCell> cells;
  for (const int context : {1, 2, 3, 4, 8})
    for (const std::string& strategy : matrix_strategies())
      for (int ulysses = 1; ulysses <= context; ++ulysses) {
        const bool hybrid = strategy == "hybrid";
        const bool inside = ulysses > 1 && ulysses < context && context % ulysses == 0;
        if (hybrid ? !inside : ulysses != (strategy == "ulysses" ? context : 1)) continue;
        for (const std::string& layout : matrix_layouts())
          for (const std::string& mask : masks)
            for (const bool packed : {true, false})
              for (const int accumulation : accumulations)
                for (const int data : data_ranks)
                  cells.push_back(
                      {context, ulysses, layout, strategy, mask, packed, accumulation, data});
      }
  return cells;
}

inline std::vector<MatrixCell> whole_matrix() {
  std::vector<MatrixCell> cells = cells_of(matrix_masks(), {1, 2}, {1, 2});
  const std::vector<MatrixCell> further = cells_of(further_masks(), {1}, {1});
  cells.insert(cells.end(), further.begin(), further.end());
  return cells;
}

// Runs cells against one rank, each reference once.
class MatrixRunner {
 public:
  Deviation run(const MatrixCell& cell) {
    config::RunConfig config = matrix_model(cell.mask);
    const std::int64_t longest = cell.packed ? 40 : 0;
    const auto key = std::pair{cell.mask, cell.packed};
    config.mutable_train()->set_micro_batch(4);
    if (references_.find(key) == references_.end())
      references_.emplace(key, run_engine(config, longest));
    const EngineRun& one = references_.at(key);

    auto& parallel = *config.mutable_parallel();
    parallel.set_data(cell.data);
    parallel.set_context(cell.context);
    parallel.set_ulysses(cell.ulysses);
    parallel.set_attention(cell.strategy);
    parallel.set_layout(cell.layout);
    config.mutable_train()->set_micro_batch(4 / (cell.accumulation * cell.data));
    return compare(run_engine(config, longest), one);
  }

 private:
  static double relative(double value, double expected) {
    return std::abs(value - expected) / std::abs(expected);
  }

  static Deviation compare(const EngineRun& many, const EngineRun& one) {
    Deviation worst;
    worst.loss = relative(many.steps.at(0).loss, one.steps.at(0).loss);
    worst.grad_norm = relative(many.steps.at(0).grad_norm, one.steps.at(0).grad_norm);
    for (const auto& [name, gradient] : one.gradients) {
      const double deviation = relative_l2(many.gradients.at(name), gradient);
      if (!(deviation <= worst.gradient)) {  // NaN too
        worst.gradient = deviation;
        worst.where = name;
      }
    }
    return worst;
  }

  std::map<std::pair<std::string, bool>, EngineRun> references_;
};

}  // namespace farspan::testing
