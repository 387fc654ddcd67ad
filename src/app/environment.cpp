#include "app/environment.h"

#include <cstdlib>

namespace farspan::app {

std::string environment_variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool started_by_mpi() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"})
    if (!environment_variable(name).empty()) return true;
  return false;
}

int num_started_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const int size = std::atoi(environment_variable(name).c_str()); size > 0) return size;
  return 0;
}

bool is_first_process() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"})
    if (const std::string rank = environment_variable(name); !rank.empty()) return rank == "0";
  return true;
}

}  // namespace farspan::app
