#include <algorithm>
#include <fstream>

#include "comm/agree.h"
#include "config/curriculum.h"
#include "config/load.h"
#include "config/validate.h"
#include "train/auto_sharding.h"
#include "train/device_overhead.h"
#include "train/dry_run.h"
#include "train/inference_model.h"
#include "train/training_run.h"

namespace farspan {

namespace fs = std::filesystem;

namespace {

// Whether `path` is `folder` or in it. Neither needs to be there any more.
bool lies_in(const fs::path& path, const fs::path& folder) {
  const auto steps = [](const fs::path& p) {
    return (fs::absolute(p).lexically_normal() / "").parent_path();
  };
  const fs::path inner = steps(path), outer = steps(folder);
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

}  // namespace

void TrainingRun::prepare() {
  agree_on(world_, "configuration", to_yaml(config_));
  agree_on(world_, "version of farspan", options_.version);
  together(world_, [&] { make_device(); });  // first: without it nothing else is worth a look
  together(world_, [&] {
    if (lead_) open_folder();
  });
  together(world_, [&] { data_.emplace(config_, stages_); });
  together(world_, [&] { check_evaluation(); });
  choose();
  connect();
  allocate();
  const std::optional<fs::path> checkpoint = choose_checkpoint();
  together(world_, [&] { load(checkpoint); });
  if (!checkpoint && config_.model().has_from()) {
    const fs::path origin = find_checkpoint(config_.model().from(), log_, world_);
    together(world_, [&] { load_origin(origin); });
  }
  enter_stage(stage_at(stages_, step_));
  CheckpointWriter::Options writer{.folder = folder_ / "checkpoints"};
  writer.keep_last = static_cast<int>(config_.checkpoint().keep_last());
  writer.keep_every = config_.checkpoint().keep_every();
  writer.config_yaml = to_yaml(config_);
  writer.code_version = options_.version;
  if (step_ >= steps_) return;
  saver_ = std::make_unique<RunSaver>(world_, std::move(writer), log_);
  // Only now: the writer holds the folder's lock, so these are no other run's that still goes on.
  together(world_, [&] {
    if (lead_ && options_.resume != TrainOptions::Resume::kAuto)
      set_aside_checkpoints_after(folder_ / "checkpoints", checkpoint ? step_ : -1, log_);
  });
  saver_->prepare(*engine_);
  log_.info("{}", peak_.description());
  if (const std::int64_t skipped = data_->skipped_tokens(steps_); skipped > 0)
    log_.info("positions.source_window: {} tokens of text are skipped on purpose in {} steps",
              skipped, steps_);
  together(world_, [&] {
    if (lead_) open_reports();
  });
}

void TrainingRun::make_device() {
  const DeviceKind kind = config_.device() == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
  backend_ = make_backend({.kind = kind,
                           .device_index = options_.local_rank % std::max(1, num_devices(kind)),
                           .num_threads = options_.threads,
                           .attention_kernel = attention_kernel(config_)});
}

// The ranks as a grid, over what moves their tensors.
void TrainingRun::connect() {
  transport_ = connect_devices(config_, world_, backend_->device(), options_.host_id);
  reach_.add(transport_.devices.get());
  mesh_of_stage_ = make_meshes();
  if (!transport_.description.empty()) log_.info("{}", transport_.description);
  world_.barrier();  // all ranks of a device have started on it: the rest of its memory is free
  limit_ = free_device_memory(config_, backend_->device(), transport_.ranks_on_device);
  world_.barrier();
}

void TrainingRun::open_folder() {
  std::error_code ec;
  fs::create_directories(folder_, ec);
  const fs::path probe = folder_ / ".writable";
  const bool writable = !ec && std::ofstream(probe).put('x').flush().good();
  fs::remove(probe, ec);
  if (!writable)
    throw Error(ExitCode::kUsage, {.what = "cannot write into the run's folder",
                                   .where = folder_.string(),
                                   .fix = "choose a writable output_dir, or free disk space"});
  log_.attach_file(folder_ / "run.log");
}

// What the configuration leaves to the data, before anything depends on it.
void TrainingRun::choose() {
  std::vector<std::string> why;
  together(world_, [&] {
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      StagePlan& stage = stages_[i];
      if (!sharding_is_automatic(stage.config)) continue;
      const bool many = stages_.size() > 1;
      const std::string choice = choose_sharding(stage.config, data_->first_batch(i));
      why.push_back(many ? fmt::format("stage {}: {}", stage.index, choice) : choice);
    }
    record_sharding(config_, stages_);  // what config.resolved.yaml will say
  });
  for (const std::string& line : why) {
    agree_on(world_, "choice of layout and strategy", line);
    log_.info("{}", line);
  }
}

void TrainingRun::allocate() {
  const DryRunReport report = dry_run(stages_, world_.rank(), world_.size()).whole;
  parameters_ = report.parameters;
  sizes_ = report.sizes;
  overhead_bytes_ = report.overhead_bytes();
  for (const MemoryItem& item : device_overhead(config_)) present_bytes_ += item.bytes;
  together(world_, [&] {
    check_memory(report, config_, options_.ranks_on_machine);
    check_limit(report.device_bytes() - present_bytes_, limit_);
  });
  together(world_, [&] { data_->cut_for(stages_, mesh_of_stage_, report.sizes); });
  // A graph is one call: its modules could not be told apart.
  for (StagePlan& stage : stages_)
    if (options_.profile && stage.config.train().cuda_graphs() == "auto")
      stage.config.mutable_train()->set_cuda_graphs("off");
  // Before the engine takes its memory, which leaves no room for this. All ranks at once, as they
  // will compute.
  world_.barrier();
  peak_ = matmul_peak(*backend_, compute_dtype(config_));
  together(world_, [&] {
    engine_ = std::make_unique<Engine>(stage().config, *backend_, mesh(), report.sizes, trace_);
    trace_.attach(backend_->make_trace_sink(options_.profile));
  });
  log_.info("{}: {:.2f}M parameters, {} ranks (data {} x context {}), {:.1f} MiB per rank",
            config_.name(), static_cast<double>(report.parameters) / 1e6, world_.size(),
            mesh().data_size(), mesh().context_size(),
            static_cast<double>(report.total_bytes()) / (1 << 20));
  log_.info("{}", backend_->description());
  log_.info("{}", schedule_.description());
  if (stages_.size() > 1) log_stages();
}

// Rank 0 looks; the others hear which step.
std::optional<fs::path> TrainingRun::choose_checkpoint() {
  const fs::path checkpoints = folder_ / "checkpoints";
  if (options_.resume == TrainOptions::Resume::kPath) return options_.resume_path;
  std::int64_t step = -1;
  fs::path found;
  together(world_, [&] {
    if (!lead_) return;
    if (options_.resume == TrainOptions::Resume::kNever) return;
    if (const auto latest = find_latest_checkpoint(checkpoints, log_)) {
      found = *latest;
      step = CheckpointReader(found, false).manifest().step();
    } else if (!list_checkpoints(checkpoints).empty()) {
      // Starting anew would overwrite them and the metrics: not without being asked.
      throw Error(ExitCode::kBadData,
                  {.what = "the run has checkpoints, and none of them verifies",
                   .where = checkpoints.string(),
                   .fix = "restore one from a copy (the warnings above name what is damaged), or "
                          "start anew with --resume never, which sets them aside"});
    }
  });
  world_.broadcast(host_tensor(&step, {1}), 0, backend_->stream()).wait();
  if (step < 0) return std::nullopt;
  for (const CheckpointFolder& folder : list_checkpoints(checkpoints))
    if (folder.step == step) return folder.path;
  throw Error(
      ExitCode::kBadData,
      {.what = fmt::format("rank {} does not see the checkpoint of step {}", world_.rank(), step),
       .where = checkpoints.string(),
       .fix = "put output_dir on a file system that all machines share"});
}

void TrainingRun::load(const std::optional<fs::path>& checkpoint) {
  if (!checkpoint) {
    engine_->initialize();
    return;
  }
  const CheckpointReader reader(*checkpoint);
  check_compatible(reader.manifest(), *checkpoint);
  restore(*engine_, reader);
  const io::TrainState& state = reader.manifest().state();
  step_ = state.step();
  tokens_ = state.tokens();
  resumed_from_ = *checkpoint;
  skipped_ = state.skipped_steps();
  if (state.has_gate_loss()) gate_loss_ = state.gate_loss();
  log_.info("resuming from {} (step {}, {} tokens)", checkpoint->string(), step_, tokens_);
}

// Shapes alone do not tell a model that reads these weights otherwise.
void TrainingRun::check_origin(const config::Model& saved, const fs::path& origin) {
  const config::Model& model = stages_.front().config.model();
  std::string differences;
  const auto compare = [&](const char* key, const auto& before, const auto& now) {
    if (before != now)
      differences += fmt::format("\n    model.{}: {} there, {} here", key, before, now);
  };
  compare("vocab_size", saved.vocab_size(), model.vocab_size());
  compare("hidden_size", saved.hidden_size(), model.hidden_size());
  compare("intermediate_size", saved.intermediate_size(), model.intermediate_size());
  compare("num_hidden_layers", saved.num_hidden_layers(), model.num_hidden_layers());
  compare("num_attention_heads", saved.num_attention_heads(), model.num_attention_heads());
  compare("num_key_value_heads", saved.num_key_value_heads(), model.num_key_value_heads());
  compare("head_dim", saved.head_dim(), model.head_dim());
  compare("tie_word_embeddings", saved.tie_word_embeddings(), model.tie_word_embeddings());
  if (!differences.empty())
    throw Error(ExitCode::kUsage,
                {.what = "the weights are of another model" + differences,
                 .where = origin.string(),
                 .fix = "give these keys the values of model.from, or leave model.from out"});
  compare("position", saved.position(), model.position());
  compare("rms_norm_eps", saved.rms_norm_eps(), model.rms_norm_eps());
  const config::RopeScaling &before = saved.rope().scaling(), &now = model.rope().scaling();
  if (before.type() != "none" && now.type() != "none")  // a new scaling is what the run is for
    compare("rope.scaling.layers", before.layers(), now.layers());
  if (!differences.empty())
    log_.warn("the weights of {} were trained otherwise:{}", origin.string(), differences);
}

// Another run's weights; the optimizer, the step and the data start anew.
void TrainingRun::load_origin(const fs::path& origin) {
  const CheckpointReader reader(origin);
  const std::string manifest = (origin / "manifest.pb").string();
  const config::RunConfig saved =
      parse_config(reader.manifest().config_yaml(), manifest, {}).config;
  const auto& steps = reader.manifest().state().stage_steps();
  check_origin(trained_config(saved, {steps.begin(), steps.end()}).model(), origin);
  restore_weights(*engine_, reader);
  config_.mutable_model()->set_from(origin.string());  // what a run's newest is changes
  log_.info("weights of {} (step {})", origin.string(), reader.manifest().step());
}

void TrainingRun::check_compatible(const io::Manifest& manifest, const fs::path& checkpoint) {
  const LoadedConfig saved =
      parse_config(manifest.config_yaml(), (checkpoint / "manifest.pb").string(), {});
  const io::TrainState& state = manifest.state();
  std::vector<std::int64_t> done(state.stage_steps().begin(), state.stage_steps().end());
  if (done.empty()) done = {state.step()};
  if (config_.curriculum().type() == "gated") restore_stages(done);
  std::vector<std::string> conflicts = resume_conflicts(saved.config, config_, done);
  // The cursor follows from the stages; were it another, text would be repeated or left out.
  const std::int64_t samples = data_->samples_of(state.step()).begin;
  if (conflicts.empty() && state.samples() != samples)
    conflicts.push_back(fmt::format("curriculum: {} sequences drawn in the saved run, {} now",
                                    state.samples(), samples));
  if (state.data_fingerprint() != data_->fingerprint(stages_trained(done)))
    conflicts.push_back(
        "data.train: the token stores of the stages that have begun hold other text than when they "
        "did (model.from starts a new run on other text)");
  if (conflicts.empty()) return keep_origin(saved.config, checkpoint);
  std::string what =
      "this configuration cannot continue the run: it differs in what must not change";
  for (const std::string& c : conflicts) what += "\n    " + c;
  throw Error(ExitCode::kUsage,
              {.what = what,
               .where = checkpoint.string(),
               .fix = "restore these keys, choose another output_dir, or start anew with --resume "
                      "never"});
}

// A run's origin is read before its first step: one that is given later says nothing about it.
void TrainingRun::keep_origin(const RunConfig& saved, const fs::path& checkpoint) {
  const std::string& before = saved.model().from();
  // Saved is the checkpoint that was read, given may be the run's folder around it.
  const bool same = saved.model().has_from() && lies_in(before, config_.model().from());
  if (config_.model().has_from() && !same)
    log_.warn(
        "model.from is read before the first step only: {} is not read, and the run goes on from "
        "{}, which began with {}",
        config_.model().from(), checkpoint.string(),
        saved.model().has_from() ? "the weights of " + before : std::string("new weights"));
  if (saved.model().has_from())
    config_.mutable_model()->set_from(before);
  else
    config_.mutable_model()->clear_from();
}

void TrainingRun::open_reports() {
  replace_file(folder_ / "config.resolved.yaml", to_yaml(config_));
  reports_ = std::make_unique<RunReports>(config_, folder_, step_, options_.quiet);
  log_.before_console([this] { reports_->erase_bar(); });
}

}  // namespace farspan
