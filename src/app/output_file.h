// Whether a command can write the file that it is asked for: looked at before the work, which may
// take hours.
//
//   check_output_file("--plot", args.plot, {".svg", ".png"});
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace farspan::app {

// Throws Error(kUsage) that names `option` unless the path ends as one of `extensions` (none: any
// ending), its folder exists and may be written to, and it is no folder itself.
void check_output_file(const std::string& option, const std::filesystem::path& path,
                       const std::vector<std::string>& extensions = {});

}  // namespace farspan::app
