#include "app/eval_report.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include "core/plot.h"

namespace farspan::app {
namespace {

Json origin_json(const EvalOrigin& o) {
  return {
      {"command", o.command},
      {"model", o.checkpoint},
      {"step", o.step},
      {"overrides", o.overrides},
      {"ranks", o.ranks},
      {"attention", o.attention},
      {"attention_context", o.attention_context > 0 ? Json(o.attention_context) : Json(nullptr)},
      {"trained_context", o.trained_context}};
}

std::string length_name(std::int64_t tokens) {
  return tokens % 1024 == 0 ? fmt::format("{}k", tokens / 1024) : fmt::to_string(tokens);
}

// How the model was read, where that is not as it was trained: ", dca over a context of 2k".
std::string attention_note(const EvalOrigin& o) {
  if (o.attention_context == 0) return {};
  return fmt::format(", {} over a context of {}", o.attention, length_name(o.attention_context));
}

Json cell_json(const RetrievalReport& report, const RetrievalCell& c) {
  Json out = {{"documents", c.documents},     {"right", c.right},
              {"accuracy", c.accuracy()},     {"items", c.items},
              {"items_right", c.items_right}, {"item_accuracy", c.item_accuracy()}};
  if (report.generated) return out;
  out["tokens"] = c.tokens;
  out["tokens_right"] = c.tokens_right;
  out["answer_nll"] = c.nll();
  return out;
}

template <typename Body>
void for_each_cell(const RetrievalReport& report, Body body) {
  for (const RetrievalResult& r : report.results)
    for (std::size_t l = 0; l < r.grid.lengths.size(); ++l)
      for (std::int64_t d = 0; d < r.grid.num_depths(); ++d) body(r, l, d);
}

std::string percent(double share) { return fmt::format("{:5.1f}%", 100 * share); }

std::string line_of_lengths(const TaskGrid& grid, const char* corner) {
  std::string out = fmt::format("  {:>10}", corner);
  for (const std::int64_t length : grid.lengths) out += fmt::format(" {:>8}", length_name(length));
  return out + "\n";
}

HeatMap heat_map(const RetrievalReport& report, std::string title) {
  HeatMap map{.title = std::move(title),
              .x_label = "context (tokens)",
              .y_label = "",
              .value_label = "share of documents answered"};
  map.value_min = 0;
  map.value_max = 1;
  map.subtitle = fmt::format("{}, step {}{}", report.origin.checkpoint, report.origin.step,
                             attention_note(report.origin));
  for (const std::int64_t length : report.results.front().grid.lengths)
    map.column_names.push_back(length_name(length));
  map.columns = static_cast<std::int64_t>(map.column_names.size());
  return map;
}

}  // namespace

void write_text(const std::string& path, const std::string& text) {
  const std::filesystem::path partial = path + ".partial";
  std::ofstream out(partial, std::ios::binary);
  out << text;
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(partial, path, error);
  if (!out || error)
    throw Error(ExitCode::kUsage, {.what = "cannot write the report",
                                   .where = path,
                                   .fix = "choose a writable place, or free disk space"});
}

Json to_json(const RetrievalReport& report) {
  Json out = origin_json(report.origin);
  const TaskGrid& grid = report.results.front().grid;
  out["seed"] = grid.seed;
  out["scoring"] = report.generated ? "greedy generation" : "argmax, teacher-forced";
  out["lengths"] = grid.lengths;
  out["depths"] = grid.depths;
  out["samples"] = grid.samples;
  out["distractors"] = grid.distractors;
  out["vocabulary"] = grid.vocabulary.text ? "bytes" : "integers";
  out["cells"] = Json::array();
  for_each_cell(report, [&](const RetrievalResult& r, std::size_t l, std::int64_t d) {
    Json cell = {{"task", name_of(r.grid.task)}, {"length", r.grid.lengths[l]}};
    cell["depth"] = has_depth(r.grid.task) ? Json(r.grid.depth(d)) : Json(nullptr);
    cell.update(cell_json(report, r.cell(l, d)));
    out["cells"].push_back(std::move(cell));
  });
  out["by_length"] = Json::array();
  for (const RetrievalResult& r : report.results)
    for (std::size_t l = 0; l < r.grid.lengths.size(); ++l) {
      Json row = {{"task", name_of(r.grid.task)}, {"length", r.grid.lengths[l]}};
      row.update(cell_json(report, r.of_length(l)));
      out["by_length"].push_back(std::move(row));
    }
  return out;
}

std::string to_text(const RetrievalReport& report) {
  std::string out;
  if (report.results.size() > 1) {
    out += fmt::format("documents answered, and in brackets parts of answers{}\n",
                       attention_note(report.origin));
    out += line_of_lengths(report.results.front().grid, "task");
    for (const RetrievalResult& r : report.results) {
      out += fmt::format("  {:>10}", name_of(r.grid.task));
      for (std::size_t l = 0; l < r.grid.lengths.size(); ++l) {
        const RetrievalCell c = r.of_length(l);
        out += fmt::format(" {} ({})", percent(c.accuracy()), percent(c.item_accuracy()));
      }
      out += '\n';
    }
    return out;
  }
  const RetrievalResult& r = report.results.front();
  out += fmt::format("{}: documents answered, {} for each length and depth ({}{})\n",
                     name_of(r.grid.task), r.grid.samples,
                     report.generated ? "greedy generation" : "argmax of every answer token",
                     attention_note(report.origin));
  out += line_of_lengths(r.grid, "depth");
  for (std::int64_t d = 0; d < r.grid.num_depths(); ++d) {
    out += has_depth(r.grid.task) ? fmt::format("  {:>9.0f}%", 100 * r.grid.depth(d))
                                  : fmt::format("  {:>10}", "");
    for (std::size_t l = 0; l < r.grid.lengths.size(); ++l)
      out += fmt::format(" {:>8}", percent(r.cell(l, d).accuracy()));
    out += '\n';
  }
  out += fmt::format("  {:>10}", "all");
  for (std::size_t l = 0; l < r.grid.lengths.size(); ++l)
    out += fmt::format(" {:>8}", percent(r.of_length(l).accuracy()));
  return out + "\n";
}

std::string to_csv(const RetrievalReport& report) {
  std::string out =
      "task,length,depth,documents,right,accuracy,items,items_right,tokens,tokens_right,answer_"
      "nll\n";
  for_each_cell(report, [&](const RetrievalResult& r, std::size_t l, std::int64_t d) {
    const RetrievalCell& c = r.cell(l, d);
    out +=
        fmt::format("{},{},{},{},{},{},{},{},{},{},{}\n", name_of(r.grid.task), r.grid.lengths[l],
                    has_depth(r.grid.task) ? fmt::to_string(r.grid.depth(d)) : "", c.documents,
                    c.right, c.accuracy(), c.items, c.items_right, c.tokens, c.tokens_right,
                    report.generated ? "" : fmt::to_string(c.nll()));
  });
  return out;
}

void draw(const RetrievalReport& report, const std::string& path) {
  const bool several = report.results.size() > 1;
  const RetrievalResult& first = report.results.front();
  HeatMap map = heat_map(
      report, several ? "RULER tasks" : fmt::format("Retrieval: {}", name_of(first.grid.task)));
  if (several) {
    map.y_label = "task";
    for (const RetrievalResult& r : report.results) {
      map.row_names.emplace_back(name_of(r.grid.task));
      for (std::size_t l = 0; l < r.grid.lengths.size(); ++l)
        map.values.push_back(r.of_length(l).item_accuracy());
    }
    map.value_label = "share of answers' parts found";
  } else {
    map.y_label = "depth of the needle (%)";
    for (std::int64_t d = 0; d < first.grid.num_depths(); ++d) {
      map.row_names.push_back(fmt::format("{:.0f}", 100 * first.grid.depth(d)));
      for (std::size_t l = 0; l < first.grid.lengths.size(); ++l)
        map.values.push_back(first.cell(l, d).accuracy());
    }
  }
  map.rows = static_cast<std::int64_t>(map.row_names.size());
  render(map, path);
}

Json to_json(const PerplexityReport& report) {
  Json out = origin_json(report.origin);
  out["data"] = report.data;
  out["documents"] = report.documents;
  out["num_documents"] = report.num_documents;
  out["truncated"] = report.truncated;
  out["cells"] = Json::array();
  for (const WindowScores& s : report.scores) {
    Json cell = {{"length", s.windows.length},   {"stride", s.windows.stride},
                 {"first", s.windows.first},     {"tokens", s.windows.tokens},
                 {"scored", s.scored()},         {"nll", s.mean()},
                 {"perplexity", s.perplexity()}, {"by_context", Json::array()}};
    for (const ContextBucket& b : by_context(s))
      cell["by_context"].push_back({{"begin", b.begin},
                                    {"end", b.end},
                                    {"tokens", b.tokens},
                                    {"nll", b.mean()},
                                    {"perplexity", std::exp(b.mean())}});
    out["cells"].push_back(std::move(cell));
  }
  return out;
}

std::string to_text(const PerplexityReport& report) {
  std::string out = fmt::format("{}: documents {}, {} of them{}{}\n", report.data, report.documents,
                                report.num_documents,
                                report.truncated ? ", all of a text shorter than asked for" : "",
                                attention_note(report.origin));
  out += fmt::format("  {:>8} {:>8} {:>10} {:>10} {:>12}\n", "context", "stride", "scored", "nll",
                     "perplexity");
  for (const WindowScores& s : report.scores)
    out += fmt::format("  {:>8} {:>8} {:>10} {:>10.4f} {:>12.4f}\n", length_name(s.windows.length),
                       s.windows.stride, s.scored(), s.mean(), s.perplexity());
  out += fmt::format("\nby tokens of context that a token had, window {}\n",
                     length_name(report.scores.back().windows.length));
  for (const ContextBucket& b : by_context(report.scores.back()))
    out += fmt::format("  {:>8} - {:<8} {:>10} {:>10.4f} {:>12.4f}\n", b.begin, b.end - 1, b.tokens,
                       b.mean(), std::exp(b.mean()));
  return out;
}

std::string to_csv(const PerplexityReport& report) {
  std::string out = "length,stride,context_begin,context_end,tokens,nll,perplexity\n";
  for (const WindowScores& s : report.scores) {
    out += fmt::format("{},{},,,{},{},{}\n", s.windows.length, s.windows.stride, s.scored(),
                       s.mean(), s.perplexity());
    for (const ContextBucket& b : by_context(s))
      out += fmt::format("{},{},{},{},{},{},{}\n", s.windows.length, s.windows.stride, b.begin,
                         b.end, b.tokens, b.mean(), std::exp(b.mean()));
  }
  return out;
}

void draw(const PerplexityReport& report, const std::string& path) {
  LinePlot plot{.title = "Perplexity against context length",
                .x_label = "context (tokens)",
                .y_label = "perplexity",
                .log_x = true,
                .subtitle = fmt::format("{}, {}{}", report.origin.checkpoint, report.data,
                                        attention_note(report.origin))};
  plot.binary_x = true;
  Series whole{.name = "all tokens, by window"}, inside{.name = "longest window, by context"};
  whole.style = inside.style = SeriesStyle::kLinePoints;
  for (const WindowScores& s : report.scores) {
    whole.x.push_back(static_cast<double>(s.windows.length));
    whole.y.push_back(s.perplexity());
  }
  for (const ContextBucket& b : by_context(report.scores.back())) {
    inside.x.push_back(static_cast<double>(b.end));
    inside.y.push_back(std::exp(b.mean()));
  }
  plot.series = {std::move(whole), std::move(inside)};
  render(plot, path);
}

Json to_json(const LongPplReport& report) {
  Json out = to_json(report.text);
  out["short"] = report.short_length;
  out["short_stride"] = report.short_stride;
  out["alpha"] = report.rule.alpha;
  out["beta"] = report.rule.beta;
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    Json& cell = out["cells"][i];
    const LongPerplexity& r = report.results[i];
    cell["compared"] = r.tokens;
    cell["key_tokens"] = r.key_tokens;
    cell["key_nll"] = r.key_nll;
    cell["longppl"] = r.long_perplexity();
  }
  return out;
}

std::string to_text(const LongPplReport& report) {
  std::string out = fmt::format(
      "LongPPL on {}: key tokens gain more than {} nats over {} tokens of context and have a "
      "log-probability above {}{}\n  {:>8} {:>10} {:>10} {:>12} {:>12}\n",
      report.text.data, report.rule.alpha, report.short_length, report.rule.beta,
      attention_note(report.text.origin), "context", "tokens", "key", "perplexity", "LongPPL");
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    const LongPerplexity& r = report.results[i];
    out += fmt::format("  {:>8} {:>10} {:>10} {:>12.4f} {:>12}\n",
                       length_name(report.text.scores[i].windows.length), r.tokens, r.key_tokens,
                       std::exp(r.all_nll),
                       r.key_tokens > 0 ? fmt::format("{:.4f}", r.long_perplexity()) : "-");
  }
  return out;
}

std::string to_csv(const LongPplReport& report) {
  std::string out = "length,short,tokens,key_tokens,perplexity,longppl\n";
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    const LongPerplexity& r = report.results[i];
    out += fmt::format("{},{},{},{},{},{}\n", report.text.scores[i].windows.length,
                       report.short_length, r.tokens, r.key_tokens, std::exp(r.all_nll),
                       r.key_tokens > 0 ? fmt::to_string(r.long_perplexity()) : "");
  }
  return out;
}

void draw(const LongPplReport& report, const std::string& path) {
  LinePlot plot{.title = "LongPPL against context length",
                .x_label = "context (tokens)",
                .y_label = "perplexity",
                .log_x = true,
                .subtitle = fmt::format("{}, {}{}", report.text.origin.checkpoint, report.text.data,
                                        attention_note(report.text.origin))};
  plot.binary_x = true;
  Series key{.name = "key tokens"}, all{.name = "all tokens"};
  key.style = all.style = SeriesStyle::kLinePoints;
  for (std::size_t i = 0; i < report.results.size(); ++i) {
    const auto x = static_cast<double>(report.text.scores[i].windows.length);
    key.x.push_back(x);
    key.y.push_back(report.results[i].long_perplexity());
    all.x.push_back(x);
    all.y.push_back(std::exp(report.results[i].all_nll));
  }
  plot.series = {std::move(key), std::move(all)};
  render(plot, path);
}

}  // namespace farspan::app
