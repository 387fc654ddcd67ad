// A run's folder with checkpoints of a tiny model, as a training run leaves it.
#pragma once

#include <filesystem>
#include <vector>

#include "comm/factory.h"
#include "config/load.h"
#include "support/tiny_config.h"
#include "train/dry_run.h"
#include "train/run_saver.h"

namespace farspan::testing {

// tiny_config() with what a configuration file must have.
inline config::RunConfig saved_config(std::string_view precision = "fp32") {
  config::RunConfig c = tiny_config(precision);
  c.set_name("tiny");
  c.mutable_data()->add_train()->set_path("none.h5");
  c.mutable_data()->set_validation("none.h5");
  return c;
}

// Initial weights of `config` as the checkpoint of each of `steps`; returns the last one's folder.
// Each step has weights of its own (config.seed + step).
inline std::filesystem::path save_run(const std::filesystem::path& folder, config::RunConfig config,
                                      const std::vector<std::int64_t>& steps = {1}) {
  const auto world = make_self_communicator();
  const auto backend = make_backend({});
  const Mesh mesh(*world, 1, 1);
  Trace trace;
  Log log({.console = false});
  const ArenaSizes sizes = dry_run(config, 0, 1).sizes;
  CheckpointWriter::Options options{.folder = folder / "checkpoints"};
  options.keep_last = static_cast<int>(steps.size());
  options.config_yaml = to_yaml(config);
  RunSaver saver(*world, options, log);
  const std::uint64_t seed = config.seed();
  for (const std::int64_t step : steps) {
    config.set_seed(seed + static_cast<std::uint64_t>(step));
    Engine engine(config, *backend, mesh, sizes, trace);
    engine.initialize();
    saver.prepare(engine);
    io::TrainState state;
    state.set_step(step);
    state.set_applied_steps(step);
    saver.save(engine, state);
    saver.finish();
  }
  return saver.newest();
}

}  // namespace farspan::testing
