// Implied options and cross-field rules: the only place where they live.
#pragma once

#include <cstdint>
#include <vector>

#include "config/load.h"

namespace farspan {

struct ValidateOptions {
  int num_ranks = 1;
  bool need_files =
      true;  // absent data or device is an error (train), not a note (config, dry run)
};

// Fills what follows from other keys and the number of ranks: output_dir, num_key_value_heads,
// head_dim, betas, parallel.data and parallel.context when auto, batch_tokens, micro_batch when
// auto, train.steps from train.tokens, layout/attention auto. After it no field that the trainer
// reads is unset or auto. Values that cannot be resolved are left for validate() to report.
void resolve(LoadedConfig& loaded, const ValidateOptions& options);

// Every issue of a resolved configuration: head counts that do not divide, a mesh that does not fit
// the ranks, batch_tokens not a multiple, features that this build does not have, missing files...
std::vector<Issue> validate(const LoadedConfig& loaded, const ValidateOptions& options);

// load_config + resolve + validate; throws ConfigError with all issues (notes excluded).
LoadedConfig load_resolved(const std::filesystem::path& path,
                           std::span<const std::string> overrides, const ValidateOptions& options);

// Keys (dotted, with both values) in which two resolved configurations differ and that must not
// change when a run is resumed: model shape, data, seed, batch and sequence length, precision,
// optimizer type... Steps, learning rate schedule length, parallel layout, logging, checkpoint and
// evaluation cadence may change.
std::vector<std::string> resume_conflicts(const RunConfig& saved, const RunConfig& current);

}  // namespace farspan
