// Agreement between ranks on things outside the collectives' own checks.
#pragma once

#include <functional>
#include <string_view>

#include "comm/communicator.h"
#include "comm/shared_error.h"

namespace farspan {

// Throws Error(kUsage) on every rank unless all ranks pass the same `value`; the text names the
// ranks that differ: "configuration differs between ranks: ranks 0-2 ..., rank 3 ...". Collective.
void agree_on(Communicator& comm, std::string_view subject, std::string_view value);

// Runs `body` on every rank; when it throws on any, every rank throws: the failing ranks their own
// error, the others one of the same exit code. Exactly one rank's error has `report` set: the
// program prints that one only. Collective, so `body` must not contain collectives of `comm` that
// a failure would skip.
void together(Communicator& comm, const std::function<void()>& body);

}  // namespace farspan
