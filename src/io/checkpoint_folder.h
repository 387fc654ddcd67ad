// The names inside `checkpoints/` and what happens to whole folders there.
//
//   step_00000050/               a checkpoint, if it verifies
//   step_00000060.tmp.<uuid>/    a save under way or left by a killed run, or a folder being
//   deleted
//
// A folder is deleted by renaming it to a .tmp name first: a kill at any moment leaves either the
// whole checkpoint under its name or none.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/log.h"
#include "io/checkpoint.h"
#include "io/durable.h"

namespace farspan::io {

std::string step_folder_name(std::int64_t step);                       // "step_00000050"
std::optional<std::int64_t> step_of(std::string_view name);            // of a name as above
std::string temporary_name(std::int64_t step, std::string_view uuid);  // "step_00000050.tmp.<uuid>"
bool is_temporary_name(std::string_view name);
std::string new_uuid();  // 32 hex digits from the system's random device

// Deletes what runs that died have left (temporary names only), naming each in the log.
void remove_stale(const std::filesystem::path& checkpoints, Log& log);
// Renames `folder` away and deletes it.
void remove_folder(const std::filesystem::path& folder);

struct PruneRule {
  int keep_last = 3;
  std::int64_t keep_every = 0;  // 0: none
};
// Which of `steps` (all complete, any order) go: all but the newest keep_last, those divisible by
// keep_every, and `just_saved`.
std::vector<std::int64_t> steps_to_prune(std::set<std::int64_t> steps, std::int64_t just_saved,
                                         const PruneRule& rule);
// Applies the rule. Folders whose manifest or sizes do not verify neither count nor are deleted.
// `just_saved` must have verified.
void prune(const std::filesystem::path& checkpoints, std::int64_t just_saved, const PruneRule& rule,
           const std::function<void(std::string_view)>& on_point, Log& log);

// Held by the one run that saves into a folder; freed by the kernel however that run ends.
class FolderLock {
 public:
  // Waits `patience_seconds` for a run that is just dying; then throws Error(kUsage). File systems
  // without locks grant it at once.
  FolderLock(const std::filesystem::path& folder, double patience_seconds, Log& log);

 private:
  FileDescriptor descriptor_;
};

}  // namespace farspan::io
