// What every transport must do, as checks that run on each rank of a world. Each throws or records
// GoogleTest failures (which thread ranks may do at once).
#pragma once

#include <span>
#include <string>

#include "comm/communicator.h"

namespace farspan::testing {

struct Check {
  const char* name;
  void (*run)(Communicator& world);
};

std::span<const Check> all_checks();

// A deterministic random program of `length` collectives on `world`, several under way at once,
// waited on in an order of each rank's own. Checks every result against a plain reference unless
// `dry`, whose results do not exist. Equal seeds give equal programs.
void run_random_program(Communicator& world, std::uint64_t seed, int length, bool dry);

}  // namespace farspan::testing
