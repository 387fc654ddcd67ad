#include "train/metrics.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"

namespace farspan {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;  // keys stay in the order of docs/metrics.md

std::string dump(const Json& json) {
  // nlohmann writes NaN and infinities as null, and the shortest digits that read back equal.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void add_extras(Json& json, const MetricExtras& extras) {
  for (const auto& [key, value] : extras) {
    FARSPAN_CHECK(!json.contains(key), "metric '{}' twice in one line", key);
    json[key] = value;
  }
}

std::optional<Json> parse_line(const std::string& line) {
  Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) return std::nullopt;
  const auto step = json.find("step");
  if (step == json.end() || !step->is_number_integer()) return std::nullopt;
  return json;
}

bool is_kind(const Json& json, std::string_view kind) {
  const auto it = json.find("kind");
  return it != json.end() && it->is_string() && it->get_ref<const std::string&>() == kind;
}

double number(const Json& value) { return value.is_number() ? value.get<double>() : kUnknown; }

std::int64_t integer(const Json& value) {
  return value.is_number_integer() ? value.get<std::int64_t>() : 0;
}

TrainRow to_train_row(const Json& json) {
  TrainRow row;
  for (const auto& [key, value] : json.items()) {
    if (key == "kind") continue;
    if (key == "step") {
      row.step = integer(value);
    } else if (key == "tokens") {
      row.tokens = integer(value);
    } else if (key == "loss") {
      row.loss = number(value);
    } else if (key == "grad_norm") {
      row.grad_norm = number(value);
    } else if (key == "lr") {
      row.lr = number(value);
    } else if (key == "seconds") {
      row.seconds = number(value);
    } else if (key == "tokens_per_second") {
      row.tokens_per_second = number(value);
    } else if (key == "tflops_per_rank") {
      row.tflops_per_rank = number(value);
    } else if (key == "mfu") {
      row.mfu = number(value);
    } else if (key == "sequence_length") {
      row.sequence_length = integer(value);
    } else if (key == "stage") {
      row.stage = integer(value);
    } else if (key == "valid_tokens") {
      row.valid_tokens = integer(value);
    } else if (key == "skipped") {
      row.skipped = integer(value);
    } else {
      row.extras.emplace_back(key, number(value));
    }
  }
  return row;
}

EvalRow to_eval_row(const Json& json) {
  EvalRow row;
  for (const auto& [key, value] : json.items()) {
    if (key == "kind") continue;
    if (key == "step") {
      row.step = integer(value);
    } else if (key == "name") {
      row.name = value.is_string() ? value.get<std::string>() : "";
    } else if (key == "value") {
      row.value = number(value);
    } else {
      row.extras.emplace_back(key, number(value));
    }
  }
  return row;
}

std::ifstream open_for_reading(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in)
    throw Error(ExitCode::kBadData, {.what = "cannot read the metrics of the run",
                                     .where = path.string(),
                                     .fix = "name the metrics.jsonl in a run's folder"});
  return in;
}

}  // namespace

std::string to_json_line(const TrainRow& row) {
  Json json = {{"kind", "train"},
               {"step", row.step},
               {"tokens", row.tokens},
               {"loss", row.loss},
               {"grad_norm", row.grad_norm},
               {"lr", row.lr},
               {"seconds", row.seconds},
               {"tokens_per_second", row.tokens_per_second},
               {"tflops_per_rank", row.tflops_per_rank},
               {"mfu", row.mfu},
               {"sequence_length", row.sequence_length},
               {"stage", row.stage},
               {"valid_tokens", row.valid_tokens},
               {"skipped", row.skipped}};
  add_extras(json, row.extras);
  return dump(json);
}

std::string to_json_line(const EvalRow& row) {
  Json json = {{"kind", "eval"}, {"step", row.step}, {"name", row.name}, {"value", row.value}};
  add_extras(json, row.extras);
  return dump(json);
}

MetricsFile::MetricsFile(fs::path path) : file_(std::move(path)) {}

MetricsFile::Cut MetricsFile::cut_after(std::int64_t step) {
  Cut cut;
  const fs::path path = file_.path();
  {
    std::ifstream in = open_for_reading(path);
    ReplacementFile kept(path);
    std::string line;
    while (std::getline(in, line)) {
      const bool torn = in.eof();  // no newline at its end, even if it happens to parse
      const std::optional<Json> json = torn ? std::nullopt : parse_line(line);
      if (!json) {
        ++cut.malformed;
      } else if (json->at("step").get<std::int64_t>() > step) {
        ++cut.dropped;
      } else {
        ++cut.kept;
        kept.append(line + "\n");
      }
    }
    if (cut.dropped + cut.malformed == 0) return cut;
    kept.commit();
  }
  file_ = AppendFile(path);  // the old descriptor belongs to the replaced file
  return cut;
}

void MetricsFile::write(const TrainRow& row) { file_.append(to_json_line(row) + "\n"); }
void MetricsFile::write(const EvalRow& row) { file_.append(to_json_line(row) + "\n"); }

MetricsContent read_metrics(const fs::path& path) {
  MetricsContent out;
  std::ifstream in = open_for_reading(path);
  std::string line;
  for (std::int64_t number_of_line = 1; std::getline(in, line); ++number_of_line) {
    if (in.eof()) break;
    const std::optional<Json> json = parse_line(line);
    if (json && is_kind(*json, "train")) {
      out.train.push_back(to_train_row(*json));
    } else if (json && is_kind(*json, "eval")) {
      out.eval.push_back(to_eval_row(*json));
    } else {
      throw Error(ExitCode::kBadData,
                  {.what = "not a line of metrics (an object with \"kind\" and \"step\")",
                   .where = fmt::format("{}, line {}", path.string(), number_of_line),
                   .fix = "remove this line; starting the run again removes such lines as well"});
    }
  }
  return out;
}

}  // namespace farspan
