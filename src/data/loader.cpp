#include "data/loader.h"

#include "core/error.h"

namespace farspan {
namespace {

PackingOptions packing_options(const config::RunConfig& config) {
  if (config.data().packing() != "concat")
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("packing `{}` is not built yet", config.data().packing()),
                 .where = "data.packing",
                 .fix = "use data.packing: concat"});
  return {
      .documents = config.data().documents() == "joined" ? Documents::kJoined : Documents::kMasked,
      .reset_positions = config.positions().reset_per_document()};
}

}  // namespace

SampleReader open_training_data(const config::RunConfig& config, TokenStore::Verify verify) {
  const PackingOptions packing = packing_options(config);
  if (config.data().train().empty())
    throw Error(ExitCode::kUsage, {.what = "no training data is named",
                                   .where = "data.train",
                                   .fix = "list token stores: [{path: data/text.h5}]"});
  std::vector<WeightedStore> sources;
  for (const auto& source : config.data().train())
    sources.push_back({std::make_shared<const TokenStore>(source.path(), verify), source.weight()});
  return SampleReader(
      std::move(sources),
      {.seed = config.seed(), .packing = packing, .vocab_size = config.model().vocab_size()});
}

std::optional<EvaluationReader> open_validation_data(const config::RunConfig& config,
                                                     TokenStore::Verify verify) {
  if (config.data().validation().empty()) return std::nullopt;
  return EvaluationReader(std::make_shared<const TokenStore>(config.data().validation(), verify),
                          packing_options(config), config.model().vocab_size());
}

}  // namespace farspan
