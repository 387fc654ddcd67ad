// What `farspan inspect PATH` finds out, as one JSON object, and the same for people.
//
//   Json report = inspect_path("runs/quickstart");     // {"kind": "run", "verifies": true, ...}
//   std::string text = report_text(report);
//
// Every report has kind ("token_store", "checkpoint", "run"), path, verifies, and when it does not
// verify, problem {what, where, fix}.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace farspan::app {

using Json = nlohmann::ordered_json;

enum class PathKind { kTokenStore, kCheckpoint, kRun };

// Throws Error(kUsage) when there is nothing at `path` or nothing that inspect knows.
PathKind kind_of(const std::filesystem::path& path);

// The folder of checkpoints of a run: its `checkpoints`, or `path` itself when that holds them.
std::filesystem::path checkpoints_of(const std::filesystem::path& path);

Json inspect_path(const std::filesystem::path& path);
std::string report_text(const Json& report);

}  // namespace farspan::app
