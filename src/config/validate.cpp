// Cross-field rules. Names, types and ranges were checked by the reader; what a rule reads may
// still be unset when the reader refused it, so every rule guards its own divisions.
#include "config/validate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "config/rules.h"
#include "config/schema.h"
#include "config/stages.h"
#include "config/suggest.h"

namespace farspan {

namespace fs = std::filesystem;
namespace pb = google::protobuf;

// Values outside the schema's `built` list: known names whose feature this version lacks.
void check_built(Rules& rules, std::string_view section) {
  visit_leaves(rules.config(), [&](const std::string& key, const pb::FieldDescriptor& field,
                                   const pb::Message& parent) {
    if (!field.options().HasExtension(config::built) || !is_set(parent, field)) return;
    if (!key.starts_with(section)) return;
    const std::string& built = field.options().GetExtension(config::built);
    if (key.starts_with("curriculum.stages[")) return;  // checked stage by stage
    if (built == "unset") {
      // A resolved configuration names every key, with the defaults of those that it does not set.
      const pb::Message& defaults =
          *pb::MessageFactory::generated_factory()->GetPrototype(parent.GetDescriptor());
      if (field.has_default_value() && value_text(parent, field) == value_text(defaults, field))
        return;
      rules.add(key, "is not built yet", fmt::format("leave {} out", key));
      return;
    }
    const std::vector<std::string> allowed = split_words(built);
    const auto refuse = [&](const std::string& value) {
      if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
        rules.add(key, fmt::format("{} is not built yet", value), "use " + join_or(allowed));
    };
    if (!field.is_repeated()) return refuse(value_text(parent, field));
    const pb::Reflection& r = *parent.GetReflection();
    for (int i = 0; i < r.FieldSize(parent, &field); ++i)
      refuse(r.GetRepeatedString(parent, &field, i));
  });
}

namespace {

class Validator : private Rules {
 public:
  Validator(const LoadedConfig& loaded, const ValidateOptions& options)
      : Rules(loaded, options), config_(loaded.config), options_(options) {}

  std::vector<Issue> run() {
    check_built(*this);
    check_device();
    check_names();
    check_model();
    check_mesh();
    check_batch();
    check_steps();
    check_schedule();
    check_optimizer();
    check_data();
    check_evaluation();
    check_output_dir();
    check_curriculum(*this);
    return take();
  }

 private:
  void check_device();
  void check_names();
  void check_model();
  void check_origin(const std::string& path);
  void check_heads();
  void check_mesh();
  void check_batch();
  void check_steps();
  void check_schedule();
  void check_optimizer();
  void check_data();
  void check_file(const std::string& key, const std::string& path);
  void check_evaluation();
  void check_output_dir();

  const RunConfig& config_;
  const ValidateOptions& options_;
};

void Validator::check_device() {
  if (config_.parallel().transport() == "nccl" && config_.device() != "cuda")
    add("parallel.transport", "nccl moves tensors of GPUs, and device is " + config_.device(),
        "use device: cuda, or leave parallel.transport out", {"device"});
  const std::vector<std::string> built = split_words(FARSPAN_BUILT_DEVICES, ',');
  if (std::find(built.begin(), built.end(), config_.device()) != built.end()) return;
  add("device", fmt::format("this build has no {} backend", config_.device()),
      fmt::format("use device: {}, or build with cmake --preset {}", join_or(built),
                  config_.device()))
      .note = !options_.need_files;
}

// Whose weights a run starts with; one that resumes does not need them any more.
void Validator::check_origin(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return;
  add("model.from",
      path.empty() ? std::string("is empty") : fmt::format("there is no folder {}", path),
      "name the folder of a run, such as runs/quickstart, or of one of its checkpoints; leave it "
      "out to start with new weights")
      .note = !path.empty();
}

void Validator::check_names() {
  if (config_.name().empty()) add("name", "is empty", "give the run a name");
  const bool implied_dir = config_.output_dir() == "runs/" + config_.name();
  if (implied_dir && (config_.name() == ".." || config_.name().find('/') != std::string::npos))
    add("name", "names a folder outside runs/", "leave out '/', or set output_dir");
}

void Validator::check_model() {
  const config::Model& model = config_.model();
  if (model.has_from()) check_origin(model.from());
  struct Need {
    const char* key;
    bool given;
  };
  const Need needs[] = {{"model.vocab_size", model.has_vocab_size()},
                        {"model.hidden_size", model.has_hidden_size()},
                        {"model.intermediate_size", model.has_intermediate_size()},
                        {"model.num_hidden_layers", model.has_num_hidden_layers()},
                        {"model.num_attention_heads", model.has_num_attention_heads()}};
  for (const Need& need : needs)
    if (!need.given) add(need.key, "is missing", "add it; configs/tiny.yaml shows a whole model");
  check_heads();
  check_attention(*this);
  check_attention_kernel(*this);
  check_rotary(*this);
  check_positions(*this);
  check_graphs(*this);
}

void Validator::check_heads() {
  const config::Model& model = config_.model();
  const std::int64_t heads = model.num_attention_heads();
  const std::int64_t kv_heads = model.num_key_value_heads();
  if (heads > 0 && kv_heads > 0 && heads % kv_heads != 0)
    add("model.num_key_value_heads",
        fmt::format("{} does not divide num_attention_heads {}", kv_heads, heads),
        fmt::format("use {}", one_of(divisors_of(heads))), {"model.num_attention_heads"});
  if (!model.has_head_dim() && heads > 0 && model.hidden_size() > 0)
    add("model.num_attention_heads",
        fmt::format("{} does not divide hidden_size {}", heads, model.hidden_size()),
        "change one of the two, or give model.head_dim", {"model.hidden_size", "model.head_dim"});
}

void Validator::check_mesh() {
  const config::Parallel& parallel = config_.parallel();
  const std::int64_t data = parallel.data(), context = parallel.context();
  const std::int64_t ranks = options_.num_ranks;
  if (data > 0 && context > 0 && data * context == ranks) return;
  // What the mesh needs, so that the fix can be typed.
  const std::int64_t unit = std::max<std::int64_t>(data, 1) * std::max<std::int64_t>(context, 1);
  const bool open = data == 0 || context == 0;
  const std::string mesh =
      fmt::format("data {} x context {}", data > 0 ? fmt::to_string(data) : "auto",
                  context > 0 ? fmt::to_string(context) : "auto");
  const bool data_fits = data > 0 && ranks % data == 0;
  const std::string other = data == 0   ? fmt::format("parallel.context={}", ranks)
                            : data_fits ? fmt::format("parallel.context={}", ranks / data)
                                        : fmt::format("parallel.data=1 parallel.context={}", ranks);
  add("parallel.context",
      fmt::format("{} rank{} not fit a mesh of {}", ranks, ranks == 1 ? " does" : "s do", mesh),
      fmt::format("start {}{} ranks (mpirun -np {} farspan ..., or --local-ranks {}), or set {}",
                  open ? "a multiple of " : "", unit, unit, unit, other),
      {"parallel.data"});
}

void Validator::check_batch() {
  const config::Train& train = config_.train();
  const config::Parallel& parallel = config_.parallel();
  const std::int64_t data = parallel.data(), length = train.sequence_length();
  if (data < 1 || parallel.context() < 1 || data * parallel.context() != options_.num_ranks) return;
  if (!train.has_batch_tokens() || length < 1) return;
  const std::vector<std::string> read = {"train.sequence_length", "parallel.data",
                                         "parallel.context", "train.micro_batch"};
  const std::int64_t unit = length * data, batch = train.batch_tokens();
  if (batch % unit != 0) {
    const std::int64_t below = batch / unit * unit;
    add("train.batch_tokens",
        fmt::format("{} is not a multiple of sequence_length {} x {} data rank{} = {}", batch,
                    length, data, data == 1 ? "" : "s", unit),
        below == 0 ? fmt::format("use {}", below + unit)
                   : fmt::format("use {} or {}", below, below + unit),
        read);
    return;
  }
  const std::int64_t sequences = batch / unit;
  if (train.micro_batch() < 1 || sequences % train.micro_batch() == 0) return;
  add("train.micro_batch",
      fmt::format("{} does not divide the {} sequences of a data rank's share of batch_tokens {}",
                  train.micro_batch(), sequences, batch),
      "use auto, or a divisor", {"train.batch_tokens", "train.sequence_length", "parallel.data"});
}

void Validator::check_steps() {
  const config::Train& train = config_.train();
  if (train.has_steps() && train.has_tokens())
    add("train.tokens", fmt::format("train.steps {} is given too", train.steps()),
        "keep one: train.steps=null or train.tokens=null on the command line unsets the other",
        {"train.steps"});
  if (!train.has_steps() && !train.has_tokens())
    add("train.steps", "is missing", "say how long to train: steps: 1000, or tokens: 2B",
        {"train.tokens", "train.batch_tokens"});
}

void Validator::check_schedule() {
  const config::Schedule& schedule = config_.schedule();
  const std::int64_t steps = config_.train().steps();
  const auto rounded = [&](double value) {
    return value > 0 && value < 1 ? value * static_cast<double>(steps) : value;
  };
  const double warmup = rounded(schedule.warmup()), decay = rounded(schedule.decay());
  const double total = static_cast<double>(steps);
  const bool wsd = schedule.type() == "wsd";
  // Notes, not errors: a trial of a few steps of a long run's configuration is fine, and the
  // schedule is defined for it (optim/schedule.h).
  if (steps > 0 && warmup >= total)
    add("schedule.warmup",
        fmt::format("{} steps of warmup leave nothing of the {} steps", warmup, steps),
        "for a real run warm up for fewer steps, or a share such as 2%",
        {"train.steps", "train.tokens"})
        .note = true;
  else if (steps > 0 && wsd && warmup + decay > total)
    add("schedule.decay",
        fmt::format("warmup {} and decay {} are more than the {} steps: the decay is shortened",
                    warmup, decay, steps),
        "for a real run shorten one, or use a share such as 10%",
        {"schedule.warmup", "train.steps", "train.tokens"})
        .note = true;
  const config::Schedule defaults;
  if (!wsd && schedule.decay() != defaults.decay())
    add_unread("schedule.decay", "wsd", "schedule.type", schedule.type());
  if (schedule.type() == "constant" && schedule.min_lr_ratio() != defaults.min_lr_ratio())
    add_unread("schedule.min_lr_ratio", "cosine, linear and wsd", "schedule.type", schedule.type());
}

void Validator::check_optimizer() {
  const int count = config_.optimizer().betas_size();
  if (count != 2)
    add("optimizer.betas", fmt::format("has {} entries", count), "write two, such as [0.9, 0.95]");
}

void Validator::check_file(const std::string& key, const std::string& path) {
  if (path.empty()) {
    add(key, "is empty", "name an HDF5 token store, or leave it out");
    return;
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  std::string what;
  if (!fs::exists(status))
    what = fmt::format("{} does not exist", path);
  else if (fs::is_directory(status))
    what = fmt::format("{} is a folder, not a token store", path);
  else if (::access(path.c_str(), R_OK) != 0)
    what = fmt::format("{} cannot be read", path);
  else
    return;
  add(key, what,
      "check the path (it is relative to where the program starts), or make it with "
      "farspan data import; launch/quickstart.sh makes data/kjv.*.h5")
      .note = !options_.need_files;
}

void Validator::check_data() {
  const config::Data& data = config_.data();
  if (data.train().empty())
    add("data.train", "is missing", "name token stores: train: [{path: data/kjv.train.h5}]");
  for (int i = 0; i < data.train_size(); ++i) {
    const std::string key = fmt::format("data.train[{}].path", i);
    if (!data.train(i).has_path())
      add(key, "is missing", "name an HDF5 token store");
    else
      check_file(key, data.train(i).path());
  }
  if (data.has_validation()) check_file("data.validation", data.validation());
}

void Validator::check_evaluation() { farspan::check_evaluation(*this); }

void Validator::check_output_dir() {
  if (config_.output_dir().empty()) {
    add("output_dir", "is empty", "name a folder for the run");
    return;
  }
  if (!options_.need_files) return;
  // The folder itself, or the nearest one above it that exists: there it would be made.
  std::error_code error;
  fs::path at = fs::absolute(config_.output_dir(), error);
  while (!fs::exists(at, error) && at.has_parent_path() && at != at.parent_path())
    at = at.parent_path();
  if (!fs::is_directory(at, error))
    add("output_dir", fmt::format("{} is not a folder", at.string()), "name another folder");
  else if (::access(at.c_str(), W_OK | X_OK) != 0)
    add("output_dir", fmt::format("{} cannot be written to", at.string()),
        "name a folder you may write to, or change its permissions");
}

// `key` is one of `tainted`, or inside one, or holds one.
bool touches(const std::string& key, const std::vector<std::string>& tainted) {
  const auto inside = [](const std::string& inner, const std::string& outer) {
    return inner.starts_with(outer) && (inner.size() == outer.size() ||
                                        inner[outer.size()] == '.' || inner[outer.size()] == '[');
  };
  return std::any_of(tainted.begin(), tainted.end(), [&](const std::string& other) {
    return inside(key, other) || inside(other, key);
  });
}

}  // namespace

std::vector<Issue> validate_single(const LoadedConfig& loaded, const ValidateOptions& options) {
  return Validator(loaded, options).run();
}

std::vector<Issue> validate(const LoadedConfig& loaded, const ValidateOptions& options) {
  return has_stages(loaded.config) ? validate_stages(loaded, options)
                                   : validate_single(loaded, options);
}

LoadResult check_config(LoadResult read, const ValidateOptions& options) {
  ValidateOptions resolved = options;
  if (resolved.num_ranks == 0) resolved.num_ranks = natural_ranks(read.loaded.config);
  resolve(read.loaded, resolved);

  // A file that is no configuration at all has nothing to cross-check.
  std::vector<std::string> tainted;
  for (const Issue& issue : read.issues) {
    if (issue.key.empty()) return read;
    tainted.push_back(issue.key);
    tainted.insert(tainted.end(), issue.also.begin(), issue.also.end());
  }
  for (Issue& issue : validate(read.loaded, resolved)) {
    std::vector<std::string> keys = issue.also;
    keys.push_back(issue.key);
    if (std::none_of(keys.begin(), keys.end(),
                     [&](const std::string& key) { return touches(key, tainted); }))
      read.issues.push_back(std::move(issue));
  }
  return read;
}

LoadResult check_config(const fs::path& path, std::span<const std::string> overrides,
                        const ValidateOptions& options) {
  return check_config(read_config_file(path, overrides), options);
}

LoadedConfig load_resolved(const fs::path& path, std::span<const std::string> overrides,
                           const ValidateOptions& options) {
  LoadResult result = check_config(path, overrides, options);
  const bool failed = std::any_of(result.issues.begin(), result.issues.end(),
                                  [](const Issue& issue) { return !issue.note; });
  if (failed) throw ConfigError(std::move(result.issues));
  result.loaded.notes = std::move(result.issues);
  return std::move(result.loaded);
}

}  // namespace farspan
