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

PositionOptions position_options(const config::RunConfig& config) {
  const config::Positions& positions = config.positions();
  PositionOptions options;
  if (positions.sampler() == "sequential") return options;
  options.sampler =
      positions.sampler() == "pose" ? PositionSampler::kPose : PositionSampler::kRandomized;
  options.original_context = positions.original_context();
  options.target_context = positions.target_context();
  options.chunks = positions.chunks();
  options.first_chunk_full = positions.first_chunk() == "full";
  options.target_margin = positions.target_margin();
  return options;
}

SampleReader open_training_data(const config::RunConfig& config, TokenStore::Verify verify) {
  PackingOptions packing = packing_options(config);
  packing.positions = position_options(config);
  if (config.data().train().empty())
    throw Error(ExitCode::kUsage, {.what = "no training data is named",
                                   .where = "data.train",
                                   .fix = "list token stores: [{path: data/text.h5}]"});
  std::vector<WeightedStore> sources;
  for (const auto& source : config.data().train()) {
    sources.push_back({std::make_shared<const TokenStore>(source.path(), verify), source.weight()});
    if (packing.positions.sampler != PositionSampler::kSequential &&
        sources.back().store->info().has_position_ids)
      throw Error(
          ExitCode::kUsage,
          {.what = fmt::format("{} has position ids of its own, and positions.sampler is {}",
                               source.path(), config.positions().sampler()),
           .where = "positions.sampler",
           .fix = "use sampler: sequential, or a store without position_ids"});
  }
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
