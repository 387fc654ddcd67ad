#include "data/loader.h"

#include <algorithm>
#include <map>

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

// Without links, dots and what is relative; a path that cannot be followed stands for itself.
std::filesystem::path file_of(const std::string& path) {
  std::error_code error;
  std::filesystem::path file = std::filesystem::weakly_canonical(path, error);
  return error ? std::filesystem::path(path) : file;
}

}  // namespace

PositionOptions position_options(const config::RunConfig& config) {
  const config::Positions& positions = config.positions();
  PositionOptions options;
  if (positions.sampler() == "sequential") return options;
  options.sampler = positions.sampler() == "pose"    ? PositionSampler::kPose
                    : positions.sampler() == "cream" ? PositionSampler::kCream
                                                     : PositionSampler::kRandomized;
  options.original_context = positions.original_context();
  options.target_context = positions.target_context();
  options.chunks = positions.chunks();
  options.first_chunk_full = positions.first_chunk() == "full";
  options.target_margin = positions.target_margin();
  options.source_window = positions.source_window();
  options.content_offset = positions.content_offset() == "same"   ? ContentOffset::kSame
                           : positions.content_offset() == "zero" ? ContentOffset::kZero
                                                                  : ContentOffset::kUniform;
  return options;
}

std::vector<TrainingStore> training_stores(const std::vector<StagePlan>& stages) {
  std::vector<TrainingStore> out;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    std::map<std::filesystem::path, std::ptrdiff_t> wanted;
    for (const config::DataSource& source : stages[i].config.data().train()) {
      const std::filesystem::path file = file_of(source.path());
      const auto known = std::count_if(
          out.begin(), out.end(), [&](const TrainingStore& store) { return store.file == file; });
      if (++wanted[file] > known)
        out.push_back({.path = source.path(), .file = file, .first_stage = i});
    }
  }
  return out;
}

namespace {

PackingOptions training_packing(const config::RunConfig& config) {
  PackingOptions packing = packing_options(config);
  packing.positions = position_options(config);
  return packing;
}

// The weight of each store in one stage; 0 for those it does not name.
std::vector<double> weights_in(const config::RunConfig& stage,
                               const std::vector<TrainingStore>& stores) {
  std::vector<double> out(stores.size(), 0.0);
  for (const config::DataSource& source : stage.data().train()) {
    const std::filesystem::path file = file_of(source.path());
    std::size_t i = 0;
    while (stores[i].file != file || out[i] != 0) ++i;
    out[i] = source.weight();
  }
  return out;
}

void check_positions_are_free(const TokenStore& store, const std::string& path,
                              const std::vector<StagePlan>& stages) {
  for (const StagePlan& stage : stages) {
    if (stage.config.positions().has_source_window() && store.info().has_segment_ids)
      throw Error(ExitCode::kUsage,
                  {.what = fmt::format("{} has segment ids of its own, and a source window is cut "
                                       "by documents",
                                       path),
                   .where = "positions.source_window",
                   .fix = "leave it out, or use a store without segment_ids"});
    if (!store.info().has_position_ids) continue;
    if (stage.config.positions().sampler() == "sequential") continue;
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("{} has position ids of its own, and positions.sampler is {}",
                                     path, stage.config.positions().sampler()),
                 .where = "positions.sampler",
                 .fix = "use sampler: sequential, or a store without position_ids"});
  }
}

}  // namespace

StageStart reading_as(StageStart start, const StagePlan& stage,
                      const std::vector<TrainingStore>& stores) {
  start.weights = weights_in(stage.config, stores);
  start.packing = training_packing(stage.config);
  return start;
}

SampleReader open_training_data(const config::RunConfig& config, TokenStore::Verify verify) {
  const std::vector<StagePlan> stages = plan_stages(config);
  const config::RunConfig& first = stages.front().config;
  if (first.data().train().empty())
    throw Error(ExitCode::kUsage, {.what = "no training data is named",
                                   .where = "data.train",
                                   .fix = "list token stores: [{path: data/text.h5}]"});
  const std::vector<TrainingStore> stores = training_stores(stages);
  const std::vector<double> weights = weights_in(first, stores);
  std::vector<WeightedStore> sources;
  for (std::size_t i = 0; i < stores.size(); ++i) {
    sources.push_back({std::make_shared<const TokenStore>(stores[i].path, verify), weights[i]});
    check_positions_are_free(*sources.back().store, stores[i].path, stages);
  }
  return SampleReader(std::move(sources), {.seed = config.seed(),
                                           .packing = training_packing(first),
                                           .vocab_size = config.model().vocab_size()});
}

std::optional<EvaluationReader> open_validation_data(const config::RunConfig& config,
                                                     TokenStore::Verify verify) {
  if (config.data().validation().empty()) return std::nullopt;
  return EvaluationReader(std::make_shared<const TokenStore>(config.data().validation(), verify),
                          packing_options(config), config.model().vocab_size());
}

}  // namespace farspan
