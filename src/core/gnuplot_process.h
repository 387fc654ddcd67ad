// One run of gnuplot as a child process, for core/plot.cpp.
//
//   run_gnuplot("gnuplot", "set output 'a.svg.partial'\nplot ...", "a.svg", "a.svg.partial");
#pragma once

#include <filesystem>
#include <string>

namespace farspan {

// Feeds `script` to `program` (looked up on PATH), which must write `partial`; then renames it to
// `target`. Throws Error(kUsage) with gnuplot's own words, naming `target`, when the program is
// missing, fails, or leaves no picture; `partial` is removed then and `target` is left as it was.
void run_gnuplot(const std::string& program, const std::string& script,
                 const std::filesystem::path& target, const std::filesystem::path& partial);

}  // namespace farspan
