// The program: finds the subcommand, runs it, and turns what it throws into one message and an exit
// code (core/error.h).
#include <fcntl.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "app/command.h"
#include "app/ranks.h"
#include "app/report.h"
#include "comm/agree.h"
#include "config/suggest.h"

namespace {

using farspan::Error;
using farspan::ExitCode;

// A wrong command line is known to every process of an MPI job: one of them says so.
[[noreturn]] void usage_error(farspan::ErrorText text) {
  throw farspan::SharedError(Error(ExitCode::kUsage, std::move(text)), 0,
                             farspan::app::is_first_process());
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> out;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    out.push_back(command->get_name());
  return out;
}

// CLI11 would only say that an argument was not expected, or that a subcommand is required.
// `words`: what follows the command that `app` is, whose name is `path` ("" or "extend ").
void refuse_unknown_command(const CLI::App& app, std::span<char*> words,
                            const std::string& path = "") {
  if (words.empty() || app.get_require_subcommand_min() == 0) return;
  const std::string word = words.front();
  const std::vector<std::string> names = command_names(app);
  if (word.starts_with('-')) return;
  if (std::find(names.begin(), names.end(), word) != names.end())
    return refuse_unknown_command(*app.get_subcommand(word), words.subspan(1), path + word + " ");
  const std::vector<std::string> near = farspan::nearest(word, names);
  const std::string meant = near.empty() ? "" : farspan::did_you_mean(near) + " ";
  std::string list;
  for (const std::string& name : names)
    list += fmt::format("{}{}{}", list.empty() ? "" : ", ", path, name);
  usage_error({.what = fmt::format("unknown command '{}{}'", path, word),
               .fix = fmt::format("{}commands: {}", meant, list)});
}

std::string command_line_fix(const CLI::App& app) {
  const CLI::App* chosen = &app;  // the innermost subcommand that was named
  std::string name;
  while (!chosen->get_subcommands().empty()) {
    chosen = chosen->get_subcommands().front();
    name += " " + chosen->get_name();
  }
  const std::string help = fmt::format("farspan{} --help lists what is possible", name);
  if (chosen == &app) return help;
  std::vector<std::string> options;
  for (const CLI::Option* option : chosen->get_options())
    for (const std::string& word : option->get_lnames()) options.push_back("--" + word);
  for (const std::string& extra : app.remaining(true)) {
    const std::string word = extra.substr(0, extra.find('='));
    const std::vector<std::string> near = farspan::nearest(word, options);
    if (word.starts_with("--") && !near.empty()) return farspan::did_you_mean(near) + " " + help;
  }
  return help;
}

int run(int argc, char** argv) {
  using namespace farspan::app;
  CLI::App app("Farspan trains language models on sequences too long for one device.", "farspan");
  app.set_version_flag("--version", "farspan " + version_text());
  app.require_subcommand(1);
  app.footer(
      "farspan COMMAND --help lists a command's options; farspan config --keys the keys of a "
      "configuration.\nExit codes: 0 done, 1 bug, 2 usage, 3 bad data, 4 memory or disk, "
      "5 numeric, 6 communication,\n7 does not fit, 8 extrapolates, 75 stopped and resumable.");
  Session session{.argc = &argc, .argv = &argv};
  add_train_command(app, session);
  add_config_command(app, session);
  add_data_command(app, session);
  add_inspect_command(app, session);
  add_generate_command(app, session);
  add_eval_command(app, session);
  add_extend_command(app, session);
  add_doctor_command(app, session);
  try {
    if (argc > 1)
      refuse_unknown_command(app, std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    if (argc == 1) fmt::print(stderr, "{}\n", app.help());
    usage_error({.what = error.what(), .fix = command_line_fix(app)});
  }
  return session.exit_code;
}

// A file opened while one of these is closed would get its number, and our messages would land in
// it: in a checkpoint, for one.
void open_standard_descriptors() {
  for (int fd = 0; fd <= 2; ++fd)
    if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY) < 0)
      std::_Exit(static_cast<int>(ExitCode::kUsage));
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_descriptors();
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is then an error of write(), not a death
  try {
    return run(argc, argv);
  } catch (...) {
    return static_cast<int>(farspan::app::report_failure(std::current_exception()));
  }
}
