#include "app/build_info.h"

#include "app/command.h"

namespace farspan::app {

BuildInfo build_info() {
  return {
      .version = FARSPAN_VERSION,
      .revision = git_revision(),
      .compiler = FARSPAN_COMPILER,
      .type = FARSPAN_BUILD_TYPE,
      .libraries = {{"HDF5", FARSPAN_HDF5_VERSION},
                    {"protobuf", FARSPAN_PROTOBUF_VERSION},
                    {"MPI standard", FARSPAN_MPI_VERSION},
                    {"yaml-cpp", FARSPAN_YAML_CPP_VERSION},
                    {"fmt", FARSPAN_FMT_VERSION},
                    {"spdlog", FARSPAN_SPDLOG_VERSION},
                    {"CLI11", FARSPAN_CLI11_VERSION},
                    {"xxHash", FARSPAN_XXHASH_VERSION}},
  };
}

std::string version_text() {
  const BuildInfo info = build_info();
  return info.version + " (git " + info.revision + ")";
}

}  // namespace farspan::app
