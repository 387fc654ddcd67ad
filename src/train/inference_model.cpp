#include "train/inference_model.h"

#include "comm/agree.h"
#include "comm/factory.h"
#include "data/token_store.h"
#include "io/manifest.h"
#include "train/device_overhead.h"
#include "train/engine.h"

namespace farspan {

namespace fs = std::filesystem;

namespace {

enum class Found { kCheckpoint, kFolderOfCheckpoints };

struct Place {
  Found found;
  fs::path path;
};

// What lies at `path`, by names alone.
Place look_at(const fs::path& path) {
  const auto refuse = [&](std::string what, std::string fix) {
    throw Error(ExitCode::kUsage,
                {.what = std::move(what), .where = path.string(), .fix = std::move(fix)});
  };
  constexpr const char* kWanted =
      "name a run's folder such as runs/quickstart, or one of its checkpoints "
      "(runs/quickstart/checkpoints/step_00000050)";
  std::error_code error;
  if (!fs::exists(path, error)) refuse("there is no such run or checkpoint", kWanted);
  if (!fs::is_directory(path, error)) refuse("is a file, not a run or a checkpoint", kWanted);
  if (fs::exists(path / io::kManifestFile, error)) return {Found::kCheckpoint, path};
  if (fs::is_directory(path / "checkpoints", error))
    return {Found::kFolderOfCheckpoints, path / "checkpoints"};
  if (!list_checkpoints(path).empty()) return {Found::kFolderOfCheckpoints, path};
  if (fs::exists(path / "config.json", error))
    refuse("is a Hugging Face directory, which this version cannot read yet",
           std::string("train a model with farspan train, and ") + kWanted);
  refuse(fs::exists(path / "config.resolved.yaml", error) ? "is a run that has no checkpoint yet"
                                                          : "holds no run and no checkpoint",
         kWanted);
  FARSPAN_CHECK(false);
}

fs::path newest_of(const fs::path& checkpoints, Log& log) {
  if (const auto latest = find_latest_checkpoint(checkpoints, log)) return *latest;
  const bool none = list_checkpoints(checkpoints).empty();
  throw Error(ExitCode::kBadData,
              {.what = none ? "the run has no checkpoint yet"
                            : "the run has checkpoints, and none of them verifies",
               .where = checkpoints.string(),
               .fix = none ? "let it train to its next checkpoint (checkpoint.every), or stop it, "
                             "which saves one"
                           : "restore one from a copy (the warnings above name what is damaged)"});
}

// Names are kept in the data, not in checkpoints. Byte data have a vocabulary like no other.
TokenizerInfo tokenizer_info(const config::RunConfig& trained) {
  std::error_code error;
  for (const config::DataSource& source : trained.data().train())
    if (fs::exists(source.path(), error))
      return TokenStore(source.path(), TokenStore::Verify::kSize).info().tokenizer;
  TokenizerInfo bytes = byte_tokenizer_info();
  if (trained.model().vocab_size() == bytes.vocab_size) return bytes;
  return {.vocab_size = trained.model().vocab_size()};
}

}  // namespace

fs::path find_checkpoint(const fs::path& path, Log& log, Communicator& world) {
  Place place{};
  fs::path found;
  std::int64_t step = -1;
  together(world, [&] { place = look_at(path); });
  together(world, [&] {
    if (world.rank() != 0) return;
    found = place.found == Found::kCheckpoint ? place.path : newest_of(place.path, log);
    step = CheckpointReader(found, place.found == Found::kCheckpoint).manifest().step();
  });
  Stream stream;
  world.broadcast(host_tensor(&step, {1}), 0, stream).wait();
  together(world, [&] {
    if (place.found == Found::kCheckpoint) found = place.path;
    for (const CheckpointFolder& folder : list_checkpoints(place.path))
      if (found.empty() && folder.step == step) found = folder.path;
    if (found.empty())
      throw Error(ExitCode::kBadData,
                  {.what = fmt::format("rank {} does not see the checkpoint of step {}",
                                       world.rank(), step),
                   .where = place.path.string(),
                   .fix = "put the run on a file system that all machines share"});
  });
  return found;
}

std::unique_ptr<Tokenizer> tokenizer_of(const InferenceModel& model) {
  const std::string& name = model.tokenizer().name;
  if (name == "bytes") return make_tokenizer(name);
  throw Error(
      ExitCode::kUsage,
      {.what = name == "none" ? "nothing says which tokenizer the model's data were made with"
                              : fmt::format("the model's data were made with tokenizer {}, "
                                            "which this version does not have",
                                            name),
       .where = model.checkpoint().string(),
       .fix = name == "none" ? "put data.train back where the run found it; data imported "
                               "with --format tokens have ids only"
                             : "use a model of byte tokens (data import --tokenizer bytes)"});
}

// This rank on the dry backend: what passes take.
struct InferenceModel::DryTwin {
  DryTwin(const config::RunConfig& config, int rank, int num_ranks)
      : backend(make_backend(
            {.kind = DeviceKind::kDry,
             .attention_kernel = attention_kernel(config),
             .dry_target = config.device() == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu})),
        world(make_dry_communicator(rank, num_ranks)),
        mesh(make_mesh(config, *world)),
        engine(config, *backend, mesh, {}, trace) {}

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Communicator> world;
  Mesh mesh;
  Trace trace;
  ForwardEngine engine;
};

InferenceModel::InferenceModel(const fs::path& path, std::span<const std::string> overrides,
                               const InferenceOptions& options, Communicator& world)
    : options_(options),
      world_(world),
      log_({.console = world.rank() == 0, .quiet = options.quiet}),
      checkpoint_(find_checkpoint(path, log_, world)) {
  std::optional<CheckpointReader> reader;
  together(world_, [&] {
    reader.emplace(checkpoint_, /*verify_hashes=*/false);
    step_ = reader->manifest().step();
    const auto& stage_steps = reader->manifest().state().stage_steps();
    config_ = inference_config(reader->manifest().config_yaml(), checkpoint_.string(), overrides,
                               world_.size(), {stage_steps.begin(), stage_steps.end()});
    tokenizer_ = tokenizer_info(config_.trained);
    make_device();
  });
  agree_on(world_, "model and overrides", to_yaml(config()));
  transport_ = connect_devices(config(), world_, backend_->device(), options_.host_id);
  mesh_.emplace(make_mesh(config(), transport_.world(world_)));
  world_.barrier();  // all ranks of a device have started on it: the rest of its memory is free
  limit_ = free_device_memory(config(), backend_->device(), transport_.ranks_on_device);
  world_.barrier();
  together(world_, [&] {
    allocate();
    load_weights(*engine_, *reader);
  });
}

InferenceModel::~InferenceModel() = default;

void InferenceModel::make_device() {
  const DeviceKind kind = config().device() == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
  backend_ = make_backend({.kind = kind,
                           .device_index = options_.local_rank % std::max(1, num_devices(kind)),
                           .num_threads = options_.threads,
                           .attention_kernel = attention_kernel(config())});
}

void InferenceModel::allocate() {
  twin_ = std::make_unique<DryTwin>(config(), world_.rank(), world_.size());
  // Loading converts one tensor at a time.
  std::size_t largest = 0;
  for (const Parameter& p : twin_->engine.parameters().parameters())
    largest = std::max(largest, static_cast<std::size_t>(p.numel()) * sizeof(float));
  const std::size_t scratch = largest + Arena::kAlignment;
  check_room(scratch);
  engine_ = std::make_unique<ForwardEngine>(
      config(), *backend_, *mesh_,
      ForwardEngine::Sizes{.weights = twin_->engine.weights().high_water(), .scratch = scratch},
      trace_);
}

void InferenceModel::check_room(std::size_t scratch_bytes) const {
  const std::size_t arenas = twin_->engine.weights().high_water() + scratch_bytes;
  std::size_t overhead = 0;
  for (const MemoryItem& item : device_overhead(config())) overhead += item.bytes;
  const auto given = static_cast<std::size_t>(config().device_memory());
  const auto refuse = [&](std::size_t bytes, const std::string& limit) {
    throw Error(ExitCode::kDoesNotFit,
                {.what = fmt::format("the weights{} need {} on a rank, and {}",
                                     engine_ ? " and a pass" : "", size_text(bytes), limit),
                 .where = "device_memory",
                 .fix = advice(/*of_machine=*/false)});
  };
  if (given > 0 && arenas + overhead > given)
    refuse(arenas + overhead, fmt::format("device_memory is {}", size_text(given)));
  if (limit_.bytes > 0 && arenas > limit_.bytes) refuse(arenas, limit_.text);
  if (config().device() != "cpu") return;
  const std::size_t held = engine_ ? engine_->weights().capacity() : 0;
  const auto needed = (arenas - held) * static_cast<std::size_t>(options_.ranks_on_machine);
  const auto available = available_host_memory();
  if (available && needed > *available)
    throw Error(
        ExitCode::kExhausted,
        {.what = fmt::format("{} rank(s) need {} more; this machine has {} left",
                             options_.ranks_on_machine, size_text(needed), size_text(*available)),
         .fix = advice(/*of_machine=*/true)});
}

// What can be done where memory does not suffice: a device's, or that of a machine and its ranks.
std::string InferenceModel::advice(bool of_machine) const {
  std::vector<std::string> ways;
  if (engine_) ways = options_.smaller;
  if (of_machine && options_.ranks_on_machine > 1) ways.emplace_back("fewer ranks on this machine");
  if (!of_machine && engine_ && options_.ranks_share) ways.emplace_back("more ranks");
  if (config().train().precision() != "bf16") ways.emplace_back("train.precision=bf16");
  if (!of_machine && config().device_memory() > 0) ways.emplace_back("a higher device_memory");
  if (ways.empty()) return "free memory that other programs hold, or use a larger machine";
  std::string text;
  for (std::size_t i = 0; i < ways.size(); ++i)
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == ways.size() ? " or " : ", ", ways[i]);
  return "use " + text;
}

void InferenceModel::rescale(const config::RopeScaling& scaling) {
  *config_.config.mutable_model()->mutable_rope()->mutable_scaling() = scaling;
  engine_->follow_config();
  twin_->engine.follow_config();
}

void InferenceModel::reserve(const Pass& pass) {
  pass(twin_->engine);
  const std::size_t needed = twin_->engine.scratch().high_water();
  if (needed <= engine_->scratch().capacity()) return;
  check_room(needed);
  engine_->reserve(needed);
}

}  // namespace farspan
