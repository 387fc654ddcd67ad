// What `farspan eval` found, as tables, JSON, CSV and pictures.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/perplexity.h"
#include "train/retrieval.h"

namespace farspan::app {

using Json = nlohmann::ordered_json;

// Where numbers come from: kept with all of them.
struct EvalOrigin {
  std::string command, checkpoint;
  std::int64_t step = 0;
  std::vector<std::string> overrides;
  int ranks = 1;
  std::string attention = "model";
  std::int64_t attention_context = 0;  // of attention other than the model's
  std::int64_t trained_context = 0;
};

// Retrieval of one task or several over the same lengths.
struct RetrievalReport {
  EvalOrigin origin;
  bool generated = false;
  std::vector<RetrievalResult> results;
};
Json to_json(const RetrievalReport& report);
std::string to_text(const RetrievalReport& report);
std::string to_csv(const RetrievalReport& report);

struct PerplexityReport {
  EvalOrigin origin;
  std::string data, documents;
  std::int64_t num_documents = 0;  // that the scored tokens are part of
  bool truncated = false;          // the text is shorter than the tokens asked for
  std::vector<WindowScores> scores;
};
Json to_json(const PerplexityReport& report);
std::string to_text(const PerplexityReport& report);
std::string to_csv(const PerplexityReport& report);

struct LongPplReport {
  PerplexityReport text;  // of the long windows
  std::int64_t short_length = 0, short_stride = 0;
  KeyTokenRule rule;
  std::vector<LongPerplexity> results;  // for each length
};
Json to_json(const LongPplReport& report);
std::string to_text(const LongPplReport& report);
std::string to_csv(const LongPplReport& report);

// Pictures: FILE.svg or FILE.png. Throw Error(kUsage).
void draw(const RetrievalReport& report, const std::string& path);
void draw(const PerplexityReport& report, const std::string& path);
void draw(const LongPplReport& report, const std::string& path);

void write_text(const std::string& path, const std::string& text);

template <typename Report>
void write_report(const Report& report, const std::string& path) {
  if (path.ends_with(".json"))
    write_text(path, to_json(report).dump(2) + "\n");
  else if (path.ends_with(".csv"))
    write_text(path, to_csv(report));
  else
    draw(report, path);
}

}  // namespace farspan::app
