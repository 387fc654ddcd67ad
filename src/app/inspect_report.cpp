#include "app/inspect_report.h"

#include <algorithm>
#include <cmath>

#include "config/load.h"
#include "core/error.h"
#include "data/token_store.h"
#include "io/checkpoint.h"
#include "io/checkpoint_folder.h"
#include "io/manifest.h"
#include "train/metrics.h"

namespace farspan::app {
namespace fs = std::filesystem;
namespace {

Json problem_of(const Error& e) {
  return {{"what", e.text().what}, {"where", e.text().where}, {"fix", e.text().fix}};
}

// Runs `check`; damage becomes part of the report, any other error is the caller's.
template <typename Check>
void verify_into(Json& report, const Check& check) {
  try {
    check();
  } catch (const Error& e) {
    if (e.code() != ExitCode::kBadData) throw;
    report["verifies"] = false;
    if (!report.contains("problem")) report["problem"] = problem_of(e);
  }
}

bool has_entry(const fs::path& folder, bool (*wanted)(const std::string& name)) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (wanted(it->path().filename().string())) return true;
  return false;
}

bool is_shard_or_manifest(const std::string& name) {
  return name == io::kManifestFile || (name.starts_with("shard_") && name.ends_with(".h5"));
}
bool is_step_folder(const std::string& name) { return io::step_of(name).has_value(); }
bool is_safetensors(const std::string& name) { return name.ends_with(".safetensors"); }
bool is_file_of_a_run(const std::string& name) {
  return name == "checkpoints" || name == "config.resolved.yaml" || name == "metrics.jsonl";
}

// "quickstart: 4 layers x 128, heads 4/2, vocabulary 260; sequences of 2048, bf16"
std::string config_summary(const RunConfig& c) {
  const auto& m = c.model();
  return fmt::format("{}: {} layers x {}, heads {}/{}, vocabulary {}; sequences of {}, {}",
                     c.name(), m.num_hidden_layers(), m.hidden_size(), m.num_attention_heads(),
                     m.num_key_value_heads(), m.vocab_size(), c.train().sequence_length(),
                     c.train().precision());
}

Json summary_of_yaml(const std::string& yaml) {
  if (yaml.empty()) return nullptr;
  try {
    return config_summary(parse_config(yaml, "resolved configuration", {}).config);
  } catch (const Error&) {  // written by another version: shown as it is by --json
    return "does not load with this version";
  }
}

struct TensorSum {
  std::int64_t tensors = 0;
  std::int64_t elements = 0;
  std::int64_t bytes = 0;
  std::string dtypes{};

  void add(const io::TensorEntry& t) {
    const std::int64_t n = io::num_elements(t).value();
    ++tensors;
    elements += n;
    bytes += n * static_cast<std::int64_t>(size_of(io::dtype_named(t.dtype()).value()));
    if (dtypes.find(t.dtype()) == std::string::npos)
      dtypes += (dtypes.empty() ? "" : ", ") + t.dtype();
  }
  Json json() const {
    return {{"tensors", tensors}, {"elements", elements}, {"bytes", bytes}, {"dtype", dtypes}};
  }
};

void describe_manifest(const io::Manifest& m, Json& out) {
  const io::TrainState& s = m.state();
  out["step"] = m.step();
  out["state"] = {{"applied_steps", s.applied_steps()},
                  {"skipped_steps", s.skipped_steps()},
                  {"tokens", s.tokens()},
                  {"samples", s.samples()},
                  {"stage", s.stage()},
                  {"seed", s.seed()},
                  {"data_fingerprint", s.data_fingerprint()}};
  out["created"] = m.created();
  out["code_version"] = m.code_version();
  TensorSum weights, optimizer;
  for (const io::TensorEntry& t : m.tensors())
    (io::is_optimizer_state(t.name()) ? optimizer : weights).add(t);
  out["weights"] = weights.json();
  out["optimizer"] = optimizer.json();
  std::int64_t bytes = 0;
  out["shards"] = Json::array();
  for (const io::ShardFile& shard : m.shards()) {
    bytes += shard.bytes();
    out["shards"].push_back(
        {{"file", shard.file()}, {"bytes", shard.bytes()}, {"xxh3_128", shard.xxh3_128()}});
  }
  out["bytes"] = bytes;
  out["config"] = summary_of_yaml(m.config_yaml());
  out["config_yaml"] = m.config_yaml();
}

Json inspect_checkpoint(const fs::path& path) {
  Json out = {{"kind", "checkpoint"}, {"path", path.string()}, {"verifies", true}};
  verify_into(out, [&] { const CheckpointReader reader(path); });
  // What a damaged one says of itself is shown as far as its manifest can be trusted.
  try {
    describe_manifest(io::decode_manifest(io::read_file(path / io::kManifestFile, INT32_MAX), path),
                      out);
  } catch (const Error&) {
    if (out["verifies"].get<bool>()) throw;
  }
  return out;
}

Json inspect_store(const fs::path& path) {
  Json out = {{"kind", "token_store"}, {"path", path.string()}, {"verifies", true}};
  verify_into(out, [&] {
    const TokenStore store(path);
    const StoreInfo& info = store.info();
    out["tokens"] = info.num_tokens;
    out["documents"] = info.num_documents;
    out["token_bytes"] = info.token_bytes;
    out["vocab_size"] = info.tokenizer.vocab_size;
    out["tokenizer"] = info.tokenizer.name;
    out["tokenizer_hash"] = info.tokenizer.hash;
    out["columns"] = Json::array({"tokens"});
    if (info.has_labels) out["columns"].push_back("labels");
    if (info.has_position_ids) out["columns"].push_back("position_ids");
    if (info.has_segment_ids) out["columns"].push_back("segment_ids");
    out["sources"] = info.sources;
    out["bytes"] = info.file_bytes;
    out["xxh3_128"] = info.file_hash;
    store.verify_content();
  });
  return out;
}

void inspect_metrics(const fs::path& path, Json& out) {
  const MetricsContent metrics = read_metrics(path);
  Json& m = out["metrics"];
  m["train_lines"] = metrics.train.size();
  m["eval_lines"] = metrics.eval.size();
  for (std::size_t i = 1; i < metrics.train.size(); ++i)
    if (metrics.train[i].step <= metrics.train[i - 1].step)
      throw Error(ExitCode::kBadData,
                  {.what = fmt::format("step {} follows step {}: the file holds steps twice",
                                       metrics.train[i].step, metrics.train[i - 1].step),
                   .where = path.string(),
                   .fix = "start the run again: it cuts what lies after its checkpoint"});
  const auto finite = [](double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); };
  if (!metrics.train.empty()) {
    const TrainRow &first = metrics.train.front(), &last = metrics.train.back();
    m["first_step"] = first.step;
    m["last_step"] = last.step;
    m["tokens"] = last.tokens;
    m["first_loss"] = finite(first.loss);
    m["last_loss"] = finite(last.loss);
    m["skipped"] = last.skipped;
  }
  if (!metrics.eval.empty()) {
    const EvalRow& last = metrics.eval.back();
    m["last_eval"] = {{"step", last.step}, {"name", last.name}, {"value", finite(last.value)}};
  }
}

Json inspect_run(const fs::path& path) {
  Json out = {{"kind", "run"}, {"path", path.string()}, {"verifies", true}};
  const auto config = path / "config.resolved.yaml";
  if (fs::exists(config))
    verify_into(out, [&] {
      out["config"] = summary_of_yaml(io::read_file(config, std::int64_t{16} << 20));
    });
  out["checkpoints"] = Json::array();
  for (const CheckpointFolder& folder : list_checkpoints(checkpoints_of(path))) {
    Json one = {{"step", folder.step}, {"path", folder.path.string()}, {"verifies", true}};
    verify_into(one, [&] {
      const CheckpointReader reader(folder.path);
      std::int64_t bytes = 0;
      for (const auto& shard : reader.manifest().shards()) bytes += shard.bytes();
      one["bytes"] = bytes;
    });
    if (!fs::exists(folder.path)) continue;  // a run that goes on has pruned it meanwhile
    if (!one["verifies"].get<bool>()) {
      out["verifies"] = false;
      if (!out.contains("problem")) out["problem"] = one["problem"];
    }
    out["checkpoints"].push_back(std::move(one));
  }
  const auto metrics = path / "metrics.jsonl";
  if (fs::exists(metrics)) verify_into(out, [&] { inspect_metrics(metrics, out); });
  return out;
}

// 1234567 -> "1,234,567"
std::string grouped(std::int64_t n) {
  const std::string digits = std::to_string(n);
  std::string out;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0 && out.back() != '-') out += ',';
    out += digits[i];
  }
  return out;
}

std::string size_text(std::int64_t bytes) {
  const char* const units[] = {"bytes", "kB", "MB", "GB", "TB", "PB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(units); ++unit) value /= 1000;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

class Lines {
 public:
  void add(std::string_view label, const std::string& value) {
    text_ += fmt::format("{:<13}{}\n", label, value);
  }
  void integer(const Json& j, const char* key, std::string_view label) {
    if (j.contains(key)) add(label, grouped(j[key].get<std::int64_t>()));
  }
  std::string text() && { return std::move(text_); }

 private:
  std::string text_;
};

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string tensors_text(const Json& j) {
  return fmt::format("{} tensors, {} values, {}, {}", grouped(j["tensors"].get<std::int64_t>()),
                     grouped(j["elements"].get<std::int64_t>()), text_of(j["dtype"]),
                     size_text(j["bytes"].get<std::int64_t>()));
}

void checkpoint_lines(const Json& j, Lines& out) {
  if (!j.contains("step")) return;
  const Json& s = j["state"];
  out.add("step", fmt::format("{} ({} applied, {} skipped), {} tokens, {} samples, stage {}",
                              grouped(j["step"].get<std::int64_t>()), text_of(s["applied_steps"]),
                              text_of(s["skipped_steps"]), grouped(s["tokens"].get<std::int64_t>()),
                              grouped(s["samples"].get<std::int64_t>()), text_of(s["stage"])));
  if (j["config"].is_string()) out.add("model", text_of(j["config"]));
  out.add("weights", tensors_text(j["weights"]));
  out.add("optimizer", tensors_text(j["optimizer"]));
  out.add("shards",
          fmt::format("{}, {}", j["shards"].size(), size_text(j["bytes"].get<std::int64_t>())));
  out.add("written",
          fmt::format("{} by farspan {}", text_of(j["created"]), text_of(j["code_version"])));
}

void store_lines(const Json& j, Lines& out) {
  if (!j.contains("tokens")) return;
  out.integer(j, "tokens", "tokens");
  out.integer(j, "documents", "documents");
  out.add("vocabulary", fmt::format("{}, tokenizer {}, {} bytes a token", text_of(j["vocab_size"]),
                                    text_of(j["tokenizer"]), text_of(j["token_bytes"])));
  std::string columns;
  for (const Json& c : j["columns"]) columns += (columns.empty() ? "" : ", ") + text_of(c);
  out.add("columns", columns);
  out.add("file", fmt::format("{}, XXH3 {}", size_text(j["bytes"].get<std::int64_t>()),
                              text_of(j["xxh3_128"])));
}

void run_lines(const Json& j, Lines& out) {
  if (j.contains("config") && j["config"].is_string()) out.add("model", text_of(j["config"]));
  if (j.contains("metrics") && j["metrics"].contains("last_step")) {
    const Json& m = j["metrics"];
    const auto loss = [&](const char* key) {
      return m[key].is_number() ? fmt::format("{:.4f}", m[key].get<double>()) : "not finite";
    };
    out.add("training", fmt::format("steps {} to {}, {} tokens, loss {} to {} nats, {} skipped",
                                    text_of(m["first_step"]), text_of(m["last_step"]),
                                    grouped(m["tokens"].get<std::int64_t>()), loss("first_loss"),
                                    loss("last_loss"), text_of(m["skipped"])));
    if (m.contains("last_eval"))
      out.add("held out",
              fmt::format("{} {} at step {}", text_of(m["last_eval"]["name"]),
                          text_of(m["last_eval"]["value"]), text_of(m["last_eval"]["step"])));
  }
  if (j["checkpoints"].empty()) out.add("checkpoints", "none");
  for (const Json& c : j["checkpoints"]) {
    const std::string name = fs::path(text_of(c["path"])).filename().string();
    out.add("checkpoint",
            c["verifies"].get<bool>()
                ? fmt::format("{}  verifies, {}", name, size_text(c["bytes"].get<std::int64_t>()))
                : fmt::format("{}  DOES NOT VERIFY: {}", name, text_of(c["problem"]["what"])));
  }
}

}  // namespace

PathKind kind_of(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status))
    throw Error(ExitCode::kUsage, {.what = "there is nothing to inspect",
                                   .where = path.string(),
                                   .fix = "name a token store, a checkpoint or a run's folder"});
  if (!fs::is_directory(status)) {
    if (path.extension() == ".h5" || looks_like_token_store(path)) return PathKind::kTokenStore;
  } else {
    const fs::path folder = path.filename().empty() ? path.parent_path() : path;
    if (is_step_folder(folder.filename().string()) || has_entry(path, is_shard_or_manifest))
      return PathKind::kCheckpoint;
    if (has_entry(path, is_file_of_a_run) || has_entry(path, is_step_folder)) return PathKind::kRun;
    if (has_entry(path, is_safetensors) || fs::exists(path / "config.json", error))
      throw Error(ExitCode::kUsage,
                  {.what = "Hugging Face directories cannot be inspected by this version",
                   .where = path.string(),
                   .fix = "name a token store, a checkpoint or a run's folder"});
  }
  throw Error(ExitCode::kUsage, {.what = "neither a token store nor a checkpoint nor a run",
                                 .where = path.string(),
                                 .fix = "name a token store, a checkpoint or a run's folder"});
}

fs::path checkpoints_of(const fs::path& path) {
  return has_entry(path, is_step_folder) ? path : path / "checkpoints";
}

Json inspect_path(const fs::path& path) {
  switch (kind_of(path)) {
    case PathKind::kTokenStore:
      return inspect_store(path);
    case PathKind::kCheckpoint:
      return inspect_checkpoint(path);
    case PathKind::kRun:
      return inspect_run(path);
  }
  FARSPAN_CHECK(false, "no kind");
  return {};
}

std::string report_text(const Json& report) {
  Lines out;
  const std::string kind = text_of(report["kind"]);
  out.add(kind == "token_store" ? "token store" : kind, text_of(report["path"]));
  if (kind == "checkpoint") checkpoint_lines(report, out);
  if (kind == "token_store") store_lines(report, out);
  if (kind == "run") run_lines(report, out);
  if (report["verifies"].get<bool>()) {
    out.add("verifies", kind == "run" ? "yes, all of it" : "yes, every byte is as it was written");
  } else {
    const Json& p = report["problem"];
    out.add("verifies", "NO: " + text_of(p["what"]));
    if (!text_of(p["where"]).empty()) out.add("  where", text_of(p["where"]));
    if (!text_of(p["fix"]).empty()) out.add("  fix", text_of(p["fix"]));
  }
  return std::move(out).text();
}

}  // namespace farspan::app
