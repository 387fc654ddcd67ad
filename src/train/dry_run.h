// What a run will need, from the trainer itself run on the dry backend: nothing is estimated by a
// formula that could drift from the code.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "config/curriculum.h"
#include "train/engine.h"

namespace farspan {

struct DryRunReport {
  struct ArenaUse {
    std::string name;
    std::size_t bytes = 0;           // high-water mark
    std::vector<Arena::Item> items;  // what was in use at that mark, largest first
  };
  int rank = 0;
  std::vector<ArenaUse> arenas;
  std::vector<MemoryItem> overhead;  // on the device beside the arenas; none on a CPU
  ArenaSizes sizes;
  WorkCounters step_work;  // of one optimizer step, executed (recomputation included)
  CommCounters step_comm;  // bytes that this rank sends in one optimizer step
  std::int64_t parameters = 0;
  std::int64_t local_tokens = 0;   // per micro-batch
  std::int64_t micro_batches = 0;  // per optimizer step

  std::size_t checkpoint_bytes = 0;  // host copy of this rank's share of a checkpoint

  double step_flops() const;  // all of step_work
  std::size_t overhead_bytes() const;
  std::size_t device_bytes() const { return sizes.on_device() + overhead_bytes(); }
  // In host memory where the device is a GPU; on a CPU it is all one.
  std::size_t host_bytes() const { return sizes.host + checkpoint_bytes; }
  std::size_t total_bytes() const { return device_bytes() + host_bytes(); }
};

// One optimizer step, and one evaluation pass if the run evaluates, of `rank` of `num_ranks`. Every
// sequence is taken as one document: the most work, and the most memory but for what MemoryProbe
// knows better. With layout `balanced` memory is that of a place with kTokenCap times its share.
// `window` (StagePlan::window): work and traffic are those of documents that are cut into windows,
// memory is that of whole ones.
DryRunReport dry_run(const config::RunConfig& config, int rank, int num_ranks,
                     std::int64_t window = 0);

// What a run with these stages needs: each arena is as large as the stage that needs it most has
// it; work, traffic and micro-batches are those of the stage with the most memory, of equals the
// one with the most work.
struct StagesDryRun {
  // One of each kind (config/curriculum.h, distinct_stages); of those whose windows grow the first
  // and the last.
  std::vector<std::size_t> stages;
  std::vector<DryRunReport> reports;  // of those
  DryRunReport whole;
};
StagesDryRun dry_run(const std::vector<StagePlan>& stages, int rank, int num_ranks);

// What micro-batches need on a rank, from passes over them on the dry backend: no tokens are
// computed, so that it costs little beside making them. One model is kept for asking again. Layouts
// and masks that follow the documents make micro-batches of one run differ; dry_run() knows none of
// the documents.
//
//   MemoryProbe probe(config, world.rank(), world.size(), dry_run(...).sizes);
//   micro.memory = probe.train(micro);      engine.reserve(micro.memory);
class MemoryProbe {
 public:
  // `sizes`: those of dry_run(). Address space is reserved for many times as much.
  MemoryProbe(const config::RunConfig& config, int rank, int num_ranks, const ArenaSizes& sizes);
  ~MemoryProbe();
  MemoryProbe(MemoryProbe&&) noexcept;

  // The most that this micro-batch or an earlier one of this probe needs.
  PassMemory train(const MicroBatch& micro);
  PassMemory evaluate(const MicroBatch& micro);
  // A scoring pass (train/scoring.h): each label's nll, or the logits of these rows.
  PassMemory score(const MicroBatch& micro);
  PassMemory score(const MicroBatch& micro, std::span<const std::int64_t> rows);

 private:
  struct Model;
  std::unique_ptr<Model> model_;
};

// The report as a table for people.
std::string to_text(const DryRunReport& report, const config::RunConfig& config);

}  // namespace farspan
