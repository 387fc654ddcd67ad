// What this program was built from: filled in by CMake (build_info.cpp is the only file that sees
// the definitions).
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace farspan::app {

struct BuildInfo {
  std::string version;   // "0.1.0"
  std::string revision;  // "1a2b3c4", with "+changes" for a changed tree
  std::string compiler;  // "GNU 12.2.0"
  std::string type;      // "Release", with sanitizers if any
  std::vector<std::pair<std::string, std::string>> libraries;  // name, version built against
};

BuildInfo build_info();

// The revision of the source tree, written by scripts/cmake/git_revision.cmake at each build.
const char* git_revision();

}  // namespace farspan::app
