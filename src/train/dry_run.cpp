#include "train/dry_run.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "comm/factory.h"
#include "data/packing.h"
#include "parallel/balance.h"
#include "train/device_overhead.h"
#include "train/run_checkpoint.h"

namespace farspan {
namespace {

std::string human_bytes(double bytes) {
  for (const char* unit : {"B", "KiB", "MiB", "GiB"}) {
    if (bytes < 1024 || std::string_view(unit) == "GiB")
      return fmt::format("{:.1f} {}", bytes, unit);
    bytes /= 1024;
  }
  return {};
}

std::unique_ptr<Backend> make_dry_backend_for(const config::RunConfig& config) {
  return make_backend(
      {.kind = DeviceKind::kDry,
       .attention_kernel = attention_kernel(config),
       .dry_target = config.device() == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu});
}

// With layout `balanced` a place of the ring may hold up to kTokenCap times its share, and more
// where whole tokens do not allow less: room for the former is made beforehand (MemoryProbe finds
// the latter).
void pass_over_uneven_share(Engine& engine, const Mesh& mesh, const config::RunConfig& config) {
  const config::Train& train = config.train();
  Sharding even = Sharding::from(config, mesh.place());
  even.layout = LayoutKind::kZigzag;
  even.max_positions = 0;  // longer than any sequence, to have as many tokens
  const double cap = even.place.ring_size > 1 ? kTokenCap : 1;
  const auto length =
      static_cast<std::int64_t>(std::ceil(cap * static_cast<double>(train.sequence_length())));
  const MicroBatch most = shard(blank_batch(train.micro_batch(), length), even);
  engine.train_step({&most, 1}, 0, {});
  if (config.evaluation().every() > 0) engine.evaluate(most);
}

// Passes of evaluation.passkey and evaluation.perplexity, whose texts may be longer than those of
// training (train/scoring.cpp has as many rows).
void pass_over_evaluations(Engine& engine, const Mesh& mesh, const config::RunConfig& config) {
  constexpr std::int64_t kAnswer = 8;  // tokens of a text whose logits are looked at
  const config::Train& train = config.train();
  const auto pass = [&](std::int64_t length, bool nll) {
    const std::int64_t rows =
        std::max<std::int64_t>(1, train.micro_batch() * train.sequence_length() / length);
    const MicroBatch micro = shard(blank_batch(rows, length), Sharding::from(config, mesh.place()));
    if (nll) {
      engine.nll(micro);
      return;
    }
    std::vector<std::int64_t> asked(
        std::min(static_cast<std::size_t>(rows * kAnswer), micro.tokens.size()));
    std::iota(asked.begin(), asked.end(), std::int64_t{0});
    engine.row_logits(micro, asked, [](std::int64_t, std::span<const float>) {});
  };
  for (const std::int64_t length : config.evaluation().passkey().lengths()) pass(length, false);
  for (const std::int64_t length : config.evaluation().perplexity().lengths()) pass(length, true);
}

// Address space for a dry engine: little more than it needs where that is known, because thread
// ranks share one address space.
ArenaSizes dry_sizes(const config::RunConfig& config) {
  constexpr std::size_t kTables = std::size_t{1} << 24;
  ParameterStore parameters;
  const auto attention =
      make_attention(config.parallel().attention(), config.parallel().invariant());
  const Transformer model(config.model(), compute_dtype(config), parameters, *attention);
  const auto n =
      static_cast<std::size_t>(parameters.num_elements()) +
      parameters.parameters().size() * static_cast<std::size_t>(ParameterStore::kPadding);
  return {.weights = 6 * n + kTables,     // f32 and at most a bf16 copy
          .gradients = 24 * n + kTables,  // f32, and in invariant mode exact sums
          .optimizer = 8 * n + kTables,
          .activations = kDryCapacity / 2,
          .scratch = kDryCapacity / 4,
          .batch = kDryCapacity / 256,
          .host = kDryCapacity / 2};
}

}  // namespace

// A rank on the dry backend.
struct MemoryProbe::Model {
  Model(const config::RunConfig& config, int rank, int num_ranks, const ArenaSizes& sizes)
      : backend(make_dry_backend_for(config)),
        world(make_dry_communicator(rank, num_ranks)),
        mesh(make_mesh(config, *world)),
        engine(config, *backend, mesh, sizes, trace) {}

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Communicator> world;
  Mesh mesh;
  Trace trace;
  Engine engine;
};

MemoryProbe::MemoryProbe(const config::RunConfig& config, int rank, int num_ranks,
                         const ArenaSizes& sizes) {
  // Thread ranks share one address space, which arenas without limit would soon fill.
  const auto roomy = [](std::size_t bytes) { return 64 * bytes + (std::size_t{1} << 30); };
  ArenaSizes room = sizes;
  for (std::size_t* bytes : {&room.activations, &room.scratch, &room.batch, &room.host})
    *bytes = roomy(*bytes);
  model_ = std::make_unique<Model>(config, rank, num_ranks, room);
}
MemoryProbe::~MemoryProbe() = default;
MemoryProbe::MemoryProbe(MemoryProbe&&) noexcept = default;

PassMemory MemoryProbe::train(const MicroBatch& micro) {
  model_->engine.train_step({&micro, 1}, /*lr=*/0, {});
  return model_->engine.pass_memory();
}

PassMemory MemoryProbe::evaluate(const MicroBatch& micro) {
  model_->engine.evaluate(micro);
  return model_->engine.pass_memory();
}

PassMemory MemoryProbe::score(const MicroBatch& micro) {
  model_->engine.nll(micro);
  return model_->engine.pass_memory();
}

PassMemory MemoryProbe::score(const MicroBatch& micro, std::span<const std::int64_t> rows) {
  model_->engine.row_logits(micro, rows, [](std::int64_t, std::span<const float>) {});
  return model_->engine.pass_memory();
}

DryRunReport dry_run(const config::RunConfig& config, int rank, int num_ranks,
                     std::int64_t window) {
  const auto backend = make_dry_backend_for(config);
  const auto world = make_dry_communicator(rank, num_ranks);
  const Mesh mesh = make_mesh(config, *world);
  Trace trace;
  Engine engine(config, *backend, mesh, dry_sizes(config), trace);

  const config::Train& train = config.train();
  const Sharding sharding = Sharding::from(config, mesh.place());
  Batch batch = blank_batch(train.micro_batch(), train.sequence_length());
  const MicroBatch micro = shard(batch, sharding);
  if (window > 0) cut_segments(batch, window);
  const MicroBatch cut = window > 0 ? shard(batch, sharding) : micro;

  DryRunReport report;
  report.rank = rank;
  report.parameters = engine.parameters().num_elements();
  report.local_tokens = static_cast<std::int64_t>(micro.tokens.size());
  report.micro_batches = train.batch_tokens() /
                         (train.sequence_length() * train.micro_batch() * config.parallel().data());
  backend->reset_work();
  world->reset_counters();
  const CommCounters context_before = mesh.context_counters();
  const std::vector<MicroBatch> micro_batches(static_cast<std::size_t>(report.micro_batches), cut);
  engine.train_step(micro_batches, 0, {});
  report.step_work = backend->work();
  report.step_comm = world->counters();
  const CommCounters context_after = mesh.context_counters();
  for (std::size_t i = 0; i < report.step_comm.by_collective.size(); ++i) {
    auto& sum = report.step_comm.by_collective[i];
    sum.calls += context_after.by_collective[i].calls - context_before.by_collective[i].calls;
    sum.bytes_sent +=
        context_after.by_collective[i].bytes_sent - context_before.by_collective[i].bytes_sent;
  }
  if (window > 0) engine.train_step({&micro, 1}, 0, {});  // its memory
  if (config.evaluation().every() > 0) {
    engine.evaluate(micro);
    pass_over_evaluations(engine, mesh, config);
  }
  if (config.parallel().layout() == "balanced") pass_over_uneven_share(engine, mesh, config);

  for (const Arena* arena : engine.arenas())
    report.arenas.push_back({arena->name(), arena->high_water(), arena->peak_items()});
  const auto bytes = [&](std::size_t i) { return report.arenas[i].bytes; };
  report.sizes = {.weights = bytes(0),
                  .gradients = bytes(1),
                  .optimizer = bytes(2),
                  .activations = bytes(3),
                  .scratch = bytes(4),
                  .batch = bytes(5),
                  .host = report.arenas.size() > 6 ? bytes(6) : 0};
  report.overhead = backend->workspaces();
  for (MemoryItem& item : device_overhead(config)) report.overhead.push_back(std::move(item));
  report.checkpoint_bytes = Snapshot(engine, *world).bytes();
  return report;
}

namespace {

DryRunReport largest_of(const std::vector<DryRunReport>& reports) {
  const auto larger = [](const DryRunReport& a, const DryRunReport& b) {
    return std::pair(a.total_bytes(), a.step_flops()) < std::pair(b.total_bytes(), b.step_flops());
  };
  DryRunReport out = *std::max_element(reports.begin(), reports.end(), larger);
  for (const DryRunReport& report : reports) {
    const auto grow = [&](std::size_t ArenaSizes::*arena) {
      out.sizes.*arena = std::max(out.sizes.*arena, report.sizes.*arena);
    };
    for (const auto arena :
         {&ArenaSizes::weights, &ArenaSizes::gradients, &ArenaSizes::optimizer,
          &ArenaSizes::activations, &ArenaSizes::scratch, &ArenaSizes::batch, &ArenaSizes::host})
      grow(arena);
    for (std::size_t i = 0; i < out.arenas.size(); ++i)
      if (report.arenas[i].bytes > out.arenas[i].bytes) out.arenas[i] = report.arenas[i];
    if (report.overhead_bytes() > out.overhead_bytes()) out.overhead = report.overhead;
    out.checkpoint_bytes = std::max(out.checkpoint_bytes, report.checkpoint_bytes);
  }
  return out;
}

std::vector<std::size_t> stages_shown(const std::vector<StagePlan>& stages) {
  const DistinctStages kinds = distinct_stages(stages);
  std::vector<std::size_t> out;
  for (std::size_t kind = 0; kind < kinds.examples.size(); ++kind) {
    const std::size_t first = kinds.examples[kind];
    out.push_back(first);
    std::size_t last = first;
    for (std::size_t i = first; i < stages.size(); ++i)
      if (kinds.of_stage[i] == kind) last = i;
    if (stages[last].window != stages[first].window) out.push_back(last);
  }
  return out;
}

}  // namespace

StagesDryRun dry_run(const std::vector<StagePlan>& stages, int rank, int num_ranks) {
  StagesDryRun out;
  out.stages = stages_shown(stages);
  for (const std::size_t i : out.stages)
    out.reports.push_back(dry_run(stages[i].config, rank, num_ranks, stages[i].window));
  out.whole = largest_of(out.reports);
  return out;
}

double DryRunReport::step_flops() const {
  return step_work.matmul_flops + step_work.attention_forward_flops +
         step_work.attention_backward_flops;
}

std::size_t DryRunReport::overhead_bytes() const {
  std::size_t sum = 0;
  for (const MemoryItem& item : overhead) sum += item.bytes;
  return sum;
}

std::string to_text(const DryRunReport& report, const config::RunConfig& config) {
  const auto human = [](std::size_t bytes) { return human_bytes(static_cast<double>(bytes)); };
  const bool gpu = config.device() == "cuda";
  const std::string needs = gpu ? fmt::format("{} of device memory", human(report.device_bytes()))
                                : fmt::format("{} of memory", human(report.total_bytes()));
  std::string out = fmt::format(
      "rank {}: {} for {:.2f}M parameters, {} tokens per micro-batch, {} micro-batches per step\n",
      report.rank, needs, static_cast<double>(report.parameters) / 1e6, report.local_tokens,
      report.micro_batches);
  const auto row = [&](std::string_view name, std::size_t bytes, std::string_view what) {
    out += fmt::format("  {:<12} {:>12}  {}\n", name, human(bytes), what);
  };
  for (const auto& arena : report.arenas) {
    std::string items;
    for (std::size_t i = 0; i < std::min<std::size_t>(arena.items.size(), 4); ++i)
      items += fmt::format("{}{} {}", i == 0 ? "" : ", ", arena.items[i].name,
                           human(arena.items[i].bytes));
    row(arena.name, arena.bytes, items);
  }
  if (!report.overhead.empty()) {
    std::string items;
    for (const MemoryItem& item : report.overhead)
      items += fmt::format("{}{} {}", items.empty() ? "" : ", ", item.name, human(item.bytes));
    row("overhead", report.overhead_bytes(), items);
  }
  row("checkpoint", report.checkpoint_bytes, "host copy of this rank's share");
  const WorkCounters& work = report.step_work;
  out += fmt::format(
      "  work/step    {:.3g} TFLOP matmul, {:.3g} TFLOP attention forward, {:.3g} backward "
      "(executed, recompute: {})\n",
      work.matmul_flops / 1e12, work.attention_forward_flops / 1e12,
      work.attention_backward_flops / 1e12, config.train().recompute());
  out += fmt::format("  sent/step    {}\n",
                     human_bytes(static_cast<double>(report.step_comm.total_bytes())));
  return out;
}

}  // namespace farspan
