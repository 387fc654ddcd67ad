#include "io/checkpoint_folder.h"

#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <random>
#include <system_error>
#include <thread>

namespace farspan {

std::vector<CheckpointFolder> list_checkpoints(const std::filesystem::path& checkpoints) {
  std::vector<CheckpointFolder> found;
  std::error_code error;
  std::filesystem::directory_iterator entries(checkpoints, error);
  if (error == std::errc::no_such_file_or_directory) return found;
  if (error) throw io::read_error(error.value(), "list the folder", checkpoints);
  for (const auto& entry : entries) {
    const auto step = io::step_of(entry.path().filename().string());
    if (step && entry.is_directory(error)) found.push_back({*step, entry.path()});
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.step < b.step; });
  return found;
}

void set_aside_checkpoints_after(const std::filesystem::path& checkpoints, std::int64_t step,
                                 Log& log) {
  for (const CheckpointFolder& entry : list_checkpoints(checkpoints)) {
    if (entry.step <= step) continue;
    auto aside = entry.path;
    aside += ".superseded." + io::new_uuid().substr(0, 8);
    io::rename_path(entry.path, aside);
    log.info("set {} aside as {}: the run continues from step {}", entry.path.filename().string(),
             aside.filename().string(), step);
  }
}

namespace io {

std::string step_folder_name(std::int64_t step) { return fmt::format("step_{:08d}", step); }

std::optional<std::int64_t> step_of(std::string_view name) {
  constexpr std::string_view kPrefix = "step_";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || step < 0 || step_folder_name(step) != name)
    return std::nullopt;
  return step;
}

std::string temporary_name(std::int64_t step, std::string_view uuid) {
  return fmt::format("{}.tmp.{}", step_folder_name(step), uuid);
}

bool is_temporary_name(std::string_view name) {
  const auto at = name.find(".tmp.");
  return at != std::string_view::npos && step_of(name.substr(0, at)).has_value();
}

std::string new_uuid() {
  std::random_device device;
  std::string digits;
  for (int i = 0; i < 4; ++i) digits += fmt::format("{:08x}", device());
  return digits;
}

void remove_stale(const std::filesystem::path& checkpoints, Log& log) {
  std::error_code error;
  std::vector<std::filesystem::path> stale;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoints, error))
    if (is_temporary_name(entry.path().filename().string())) stale.push_back(entry.path());
  for (const auto& path : stale) {
    std::filesystem::remove_all(path, error);
    if (error)
      log.warn("cannot remove {}, left by an earlier run: {}", path.string(), error.message());
    else
      log.info("removed {}, an unfinished save or deletion of an earlier run",
               path.filename().string());
  }
}

void remove_folder(const std::filesystem::path& folder) {
  const auto step = step_of(folder.filename().string());
  FARSPAN_CHECK(step.has_value(), "{} is no checkpoint", folder.string());
  const auto doomed = folder.parent_path() / temporary_name(*step, new_uuid());
  rename_path(folder, doomed);
  sync_directory(folder.parent_path());
  std::error_code error;
  std::filesystem::remove_all(doomed, error);
  if (error) throw write_error(error.value(), "delete", doomed);
}

std::vector<std::int64_t> steps_to_prune(std::set<std::int64_t> steps, std::int64_t just_saved,
                                         const PruneRule& rule) {
  std::vector<std::int64_t> doomed;
  int newer = 0;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step, ++newer) {
    const bool kept = newer < rule.keep_last || *step == just_saved ||
                      (rule.keep_every > 0 && *step % rule.keep_every == 0);
    if (!kept) doomed.push_back(*step);
  }
  std::reverse(doomed.begin(), doomed.end());  // oldest first
  return doomed;
}

void prune(const std::filesystem::path& checkpoints, std::int64_t just_saved, const PruneRule& rule,
           const std::function<void(std::string_view)>& on_point, Log& log) {
  std::set<std::int64_t> complete;
  for (const CheckpointFolder& entry : list_checkpoints(checkpoints)) {
    try {
      const CheckpointReader reader(entry.path, false);
      complete.insert(entry.step);
    } catch (const Error& e) {
      log.warn("{} does not verify; it is neither counted nor deleted: {}",
               entry.path.filename().string(), e.text().what);
    }
  }
  FARSPAN_CHECK(complete.contains(just_saved), "step {} was saved and is not there", just_saved);
  for (const std::int64_t step : steps_to_prune(complete, just_saved, rule)) {
    if (on_point) on_point("pruning");
    remove_folder(checkpoints / step_folder_name(step));
    log.info("pruned checkpoint {}", step_folder_name(step));
  }
}

FolderLock::FolderLock(const std::filesystem::path& folder, double patience_seconds, Log& log)
    : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (!descriptor_.valid()) throw write_error(errno, "open the folder", folder);
  const auto start = std::chrono::steady_clock::now();
  bool told = false;
  while (::flock(descriptor_.get(), LOCK_EX | LOCK_NB) != 0) {
    // Where locks are unknown (some network file systems) there is nothing to hold.
    if (errno != EWOULDBLOCK && errno != EINTR) return;
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    if (waited.count() > patience_seconds) {
      throw Error(ExitCode::kUsage, {.what = "another run is saving into this folder",
                                     .where = folder.string(),
                                     .fix = "end that run, or give this one another output_dir"});
    }
    if (!told) log.info("waiting for the run that still saves into {}", folder.string());
    told = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

}  // namespace io
}  // namespace farspan
