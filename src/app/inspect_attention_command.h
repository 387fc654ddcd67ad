// farspan inspect attention: a subcommand of inspect.
#pragma once

#include "app/command.h"

namespace farspan::app {

// Adds `attention` to `inspect`, which must outlive the parse.
void add_inspect_attention(CLI::App& inspect, Session& session);

}  // namespace farspan::app
