#include "train/search_progress.h"

#include <fmt/format.h>

#include <fstream>
#include <limits>

#include "comm/agree.h"

namespace farspan {

namespace fs = std::filesystem;

namespace {

using Json = SearchProgress::Json;

// Without what is only known afterwards.
Json to_json(const Candidate& c) {
  return {{"iteration", c.iteration},
          {"origin", c.origin},
          {"attention_factor", c.factors.attention},
          {"long_factor", c.factors.of_pair}};
}

// Whole lines; what a power cut broke off goes.
std::vector<Json> read_lines(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::vector<Json> out;
  std::string line;
  std::uintmax_t whole = 0;
  while (std::getline(in, line) && !in.eof()) {
    Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object())
      throw Error(ExitCode::kBadData,
                  {.what = fmt::format("line {} is not one of a search's progress", out.size() + 1),
                   .where = path.string(),
                   .fix = "choose another --out, or remove this file to search anew"});
    out.push_back(std::move(json));
    whole += line.size() + 1;
  }
  in.close();
  std::error_code error;
  if (fs::exists(path, error) && fs::file_size(path, error) > whole)
    fs::resize_file(path, whole, error);  // what cannot be cut cannot be opened either
  return out;
}

void refuse_other(const fs::path& path, const Json& was, const Json& is) {
  std::string differ;
  for (const auto& [key, value] : is.items())
    if (!was.contains(key) || was[key] != value)
      differ += fmt::format("{}{} (there {}, here {})", differ.empty() ? "" : ", ", key,
                            was.contains(key) ? was[key].dump() : "nothing", value.dump());
  if (differ.empty()) return;
  throw Error(ExitCode::kUsage,
              {.what = "holds the progress of another search: it differs in " + differ,
               .where = path.string(),
               .fix = "choose another --out, or remove this file to search anew"});
}

}  // namespace

SearchProgress::SearchProgress(fs::path path, const Json& search, Communicator& world)
    : path_(std::move(path)), lead_(world.rank() == 0) {
  together(world, [&] {
    if (lead_) open(search);
  });
  std::int64_t count = std::ssize(nll_);
  Stream stream;
  world.broadcast(host_tensor(&count, {1}), 0, stream).wait();
  nll_.resize(static_cast<std::size_t>(count));
  if (count > 0) world.broadcast(host_tensor(nll_.data(), {count}), 0, stream).wait();
}

void SearchProgress::open(const Json& search) {
  const std::vector<Json> lines = read_lines(path_);
  file_.emplace(path_);
  if (lines.empty()) return file_->append(search.dump() + "\n");
  refuse_other(path_, lines.front(), search);
  for (std::size_t i = 1; i < lines.size(); ++i) {
    candidates_.push_back(lines[i]);
    const Json nll = lines[i].value("nll", Json());
    nll_.push_back(nll.is_number() ? nll.get<double>() : std::numeric_limits<double>::infinity());
  }
}

std::optional<double> SearchProgress::next(const Candidate& candidate) {
  if (next_ == nll_.size()) return std::nullopt;
  const std::size_t at = next_++;
  if (lead_) {
    Json recorded = candidates_[at];
    recorded.erase("nll");
    if (recorded != to_json(candidate))
      throw Error(
          ExitCode::kBadData,
          {.what = fmt::format("line {} holds another candidate than this search draws", at + 2),
           .where = path_.string(),
           .fix = "choose another --out, or remove this file to search anew"});
  }
  return nll_[at];
}

void SearchProgress::add(const Candidate& candidate) {
  if (!lead_) return;
  Json json = to_json(candidate);
  json["nll"] = candidate.nll;  // null where it is no number
  file_->append(json.dump() + "\n");
}

}  // namespace farspan
