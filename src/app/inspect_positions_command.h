// farspan inspect positions.
#pragma once

#include "app/command.h"

namespace farspan::app {

void add_inspect_positions(CLI::App& inspect, Session& session);

}  // namespace farspan::app
