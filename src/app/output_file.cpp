#include "app/output_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "core/error.h"

namespace farspan::app {

namespace fs = std::filesystem;

void check_output_file(const std::string& option, const fs::path& path,
                       const std::vector<std::string>& extensions) {
  const auto refuse = [&](const std::string& what, const std::string& fix) {
    throw Error(ExitCode::kUsage, {.what = what, .where = option, .fix = fix});
  };
  const std::string extension = path.extension().string();
  if (!extensions.empty() &&
      std::find(extensions.begin(), extensions.end(), extension) == extensions.end())
    refuse(fmt::format("cannot write {}: its ending says no format", path.string()),
           fmt::format("end its name with one of {}", fmt::join(extensions, ", ")));
  std::error_code none;  // what cannot be looked at does not exist here
  if (fs::is_directory(path, none)) refuse(path.string() + " is a folder", "name a file in it");
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (!fs::is_directory(folder, none))
    refuse(fmt::format("there is no folder {}", folder.string()),
           "make it, or name a file elsewhere");
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    refuse(fmt::format("the folder {} cannot be written to", folder.string()),
           "name a file elsewhere");
}

}  // namespace farspan::app
