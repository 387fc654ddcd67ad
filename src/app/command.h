// The program's subcommands. One file per subcommand; each adds itself to the CLI and, when chosen,
// runs and stores its exit code. Errors are thrown (core/error.h) and printed once by main.
#pragma once

#include <CLI/CLI.hpp>

#include "core/error.h"

namespace farspan::app {

struct Session {
  int* argc = nullptr;
  char*** argv = nullptr;
  int exit_code = 0;
};

void add_train_command(CLI::App& app, Session& session);     // train_command.cpp
void add_config_command(CLI::App& app, Session& session);    // config_command.cpp
void add_data_command(CLI::App& app, Session& session);      // data_command.cpp
void add_inspect_command(CLI::App& app, Session& session);   // inspect_command.cpp
void add_generate_command(CLI::App& app, Session& session);  // generate_command.cpp
void add_doctor_command(CLI::App& app, Session& session);    // doctor_command.cpp
void add_eval_command(CLI::App& app, Session& session);      // eval_command.cpp
void add_extend_command(CLI::App& app, Session& session);    // extend_command.cpp

// "0.1.0 (git 1a2b3c4)"
std::string version_text();

}  // namespace farspan::app
