#include "train/auto_sharding.h"

#include <fmt/format.h>

#include <map>

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

void record_sharding(config::RunConfig& config, const std::vector<StagePlan>& stages) {
  const std::vector<StagePlan> planned = plan_stages(config);
  FARSPAN_CHECK(planned.size() == stages.size(), "{} stages of {}", stages.size(), planned.size());
  struct Choice {
    const config::Parallel* first;
    bool agreed = true;
  };
  std::map<int, Choice> places;  // by StagePlan::entry
  for (std::size_t i = 0; i < stages.size(); ++i) {
    if (!sharding_is_automatic(planned[i].config)) continue;
    const config::Parallel& chosen = stages[i].config.parallel();
    Choice& choice = places.try_emplace(stages[i].entry, Choice{.first = &chosen}).first->second;
    choice.agreed &= choice.first->SerializeAsString() == chosen.SerializeAsString();
  }
  for (const auto& [entry, choice] : places) {
    if (!choice.agreed) continue;
    *(entry < 0 ? config.mutable_parallel()
                : config.mutable_curriculum()->mutable_stages(entry)->mutable_parallel()) =
        *choice.first;
  }
}

}  // namespace farspan
