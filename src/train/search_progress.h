// What a search has evaluated, in a file beside its result: JSON lines, the search itself and then
// each candidate. A search that was ended draws the same candidates again and is answered from it.
//
//   SearchProgress progress("found.progress.jsonl", {{"seed", 1}, ...}, world);
//   together(world, [&] { known = progress.next(candidate); });
//   if (!known) { ...; together(world, [&] { progress.add(candidate); }); }
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "train/durable_file.h"
#include "train/factor_search.h"

namespace farspan {

class SearchProgress {
 public:
  using Json = nlohmann::ordered_json;

  // `search`: all that decides which candidates are drawn and what they score. Only rank 0 touches
  // the file; a line that a power cut broke off is cut away. Collective. Throws on all ranks
  // Error(kUsage) where the file is of another search, Error(kBadData) where it is none.
  SearchProgress(std::filesystem::path path, const Json& search, Communicator& world);

  // The recorded nll of the candidate that is evaluated now; nothing once the records end. Throws
  // Error(kBadData) on rank 0 where another candidate is recorded in its place.
  std::optional<double> next(const Candidate& candidate);
  void add(const Candidate& candidate);

  std::int64_t recorded() const { return static_cast<std::int64_t>(nll_.size()); }  // at the start

 private:
  void open(const Json& search);

  std::filesystem::path path_;
  bool lead_;
  std::vector<Json> candidates_;  // rank 0
  std::vector<double> nll_;       // of each, on every rank
  std::size_t next_ = 0;
  std::optional<AppendFile> file_;  // rank 0
};

}  // namespace farspan
