// Implied options and cross-field rules: the only place where they live.
#pragma once

#include <cstdint>
#include <vector>

#include "config/load.h"

namespace farspan {

// Least tokens of a passkey document, of bytes and of integers (data/retrieval_tasks.h).
inline constexpr std::int64_t kByteVocabulary = 260;
inline constexpr std::int64_t kLeastPasskeyBytes = 80;
inline constexpr std::int64_t kLeastPasskeyTokens = 13;

struct ValidateOptions {
  int num_ranks = 1;  // 0: natural_ranks() (check_config and load_resolved only)
  bool need_files =
      true;            // absent data or device is an error (train), not a note (config, dry run)
  bool trains = true;  // false: masks are looked at only, so those that training refuses may pass
};

// Fills what other keys and the number of ranks imply. After it no field that the trainer reads is
// unset or auto, but for parallel.attention, parallel.layout and, on a GPU,
// parallel.attention_kernel; the origin of each filled key reads "implied: ...". What cannot be
// resolved is left for validate() to report. The rules, in their order:
//
//   output_dir                  runs/<name>
//   model.num_key_value_heads   num_attention_heads
//   model.head_dim              hidden_size / num_attention_heads, where that is whole
//   model.rope.scaling.factor   target_context / original_context (not llama3), or the target from
//                               the other two
//   optimizer.betas             [0.9, 0.95]
//   parallel.context auto       ranks / parallel.data; both auto: all ranks share each sequence
//   parallel.data auto          ranks / parallel.context
//   parallel.attention          with parallel.invariant: allgather, where it is auto or not given,
//   or
//                               given in the file and parallel.invariant on the command line
//   parallel.attention auto     ring on one context rank; else it stays auto: the run chooses from
//                               its first batch (train/auto_sharding.h)
//   parallel.layout auto        contiguous on one context rank; else likewise
//   parallel.ulysses auto       ring, allgather: 1; ulysses: parallel.context; hybrid: the largest
//                               number below parallel.context, at most 8, that divides it and
//                               num_attention_heads; attention auto: stays auto
//   parallel.attention_kernel auto   own on device: cpu; on a GPU it stays auto: each call is
//                               looked at (docs/attention.md)
//   train.batch_tokens          one sequence per data rank
//   train.micro_batch auto      the largest divisor of the sequences per data rank whose tokens are
//                               at most max(sequence_length, 8192 * parallel.context)
//   train.steps                 train.tokens / batch_tokens, rounded up; train.tokens is then unset
//   schedule.warmup, and .decay of wsd   a share of train.steps in whole steps: nearest, at least 1
//   positions.original_context  train.sequence_length, where a sampler reads it
//   positions.target_context    model.rope.scaling.target_context, likewise
//   positions.reset_per_document  false where data.documents is joined and it is not set
//   curriculum.window_steps     60% of train.steps; a share becomes steps
//
// With stages (curriculum.type growlength, cyclic or gated) each stage is resolved by these rules
// as a configuration of its own, and its layout, micro-batch and budget are written into it.
// Before:
//
//   curriculum.stages           without any: curriculum.min_length doubled up to max_length (else
//                               train.sequence_length), which are then unset
//   train.sequence_length       the longest stage's
//   stages[].sequence_length    train.sequence_length
//   train.batch_tokens          the most that a stage needs for one sequence per data rank
//   stages[].steps              stages[].tokens / batch_tokens, rounded up; without a budget an
//   equal
//                               share of what the others leave of train.steps (not cyclic)
//   train.steps                 the sum of the stages
//   stages[].micro_batch        where train.micro_batch is given (for the longest stage): as many
//                               tokens, so far as that divides the stage's sequences
void resolve(LoadedConfig& loaded, const ValidateOptions& options);

// Ranks that the mesh asks for by itself: data x context, auto counting 1. What `config` and dry
// runs use when no number of ranks is given.
int natural_ranks(const RunConfig& config);

// Every issue of a resolved configuration: head counts that do not divide, a mesh that does not fit
// the ranks, batch_tokens not a multiple, features that this build does not have, missing files...
std::vector<Issue> validate(const LoadedConfig& loaded, const ValidateOptions& options);

// load_config + resolve + validate; throws ConfigError with all issues of all three (less what only
// follows from an earlier one) when one of them is not a note; else they are in `notes`.
LoadedConfig load_resolved(const std::filesystem::path& path,
                           std::span<const std::string> overrides, const ValidateOptions& options);

// The same without the throw, for `farspan config`: the resolved configuration, every issue and
// every note. num_ranks 0: natural_ranks(). Throws Error(kUsage) only when the file cannot be read.
LoadResult check_config(const std::filesystem::path& path, std::span<const std::string> overrides,
                        const ValidateOptions& options);
LoadResult check_config(LoadResult read, const ValidateOptions& options);

// Keys (dotted, with both values) in which two resolved configurations differ and that must not
// change when a run is resumed: model shape, data, seed, batch and sequence length, precision,
// optimizer type... Steps, learning rate schedule length, parallel layout, logging, checkpoint and
// evaluation cadence may change. Of a curriculum, stages that have trained must stay as they were
// (the present one may become longer or end here); later ones may change. `stage_steps`: the steps
// done in each stage so far; empty: in the first only.
std::vector<std::string> resume_conflicts(const RunConfig& saved, const RunConfig& current,
                                          const std::vector<std::int64_t>& stage_steps = {});

}  // namespace farspan
