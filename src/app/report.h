// How a failure becomes a message and an exit code. Used by main and by each failing MPI rank.
#pragma once

#include <exception>

#include "core/error.h"

namespace farspan::app {

// Prints "farspan: error: ..." to standard error (nothing for a SharedError that another rank
// reports) and returns the code to exit with: an Error's own, kExhausted for bad_alloc, kInternal
// for anything else.
ExitCode report_failure(std::exception_ptr failure);

}  // namespace farspan::app
