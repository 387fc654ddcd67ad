#include "train/auto_sharding.h"

#include <fmt/format.h>

#include "parallel/attention_cost.h"

namespace farspan {

bool sharding_is_automatic(const config::RunConfig& config) {
  return config.parallel().attention() == "auto" || config.parallel().layout() == "auto";
}

std::string choose_sharding(config::RunConfig& config, const Batch& batch) {
  if (!sharding_is_automatic(config)) return {};
  const ParallelChoice choice =
      choose_parallel(parallel_request(config, batch.segments, batch.sequences));
  config::Parallel& parallel = *config.mutable_parallel();
  parallel.set_layout(std::string(layout_name(choice.layout)));
  parallel.set_attention(choice.attention);
  parallel.set_ulysses(choice.ulysses);
  return fmt::format("parallel.layout={} parallel.attention={} parallel.ulysses={} (auto): {}",
                     parallel.layout(), parallel.attention(), parallel.ulysses(), choice.why);
}

}  // namespace farspan
