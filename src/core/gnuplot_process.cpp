#include "core/gnuplot_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "core/error.h"

namespace farspan {
namespace {

class FileDescriptor {
 public:
  // Memory that looks like a file. A pipe each way would need a poll loop not to deadlock and a
  // SIGPIPE guard; a script of a few hundred kB needs neither.
  explicit FileDescriptor(const char* name) : fd_(memfd_create(name, MFD_CLOEXEC)) {
    if (fd_ < 0)
      throw Error(ExitCode::kExhausted, {.what = fmt::format("cannot make a buffer for gnuplot: {}",
                                                             std::strerror(errno)),
                                         .fix = "raise the limit of open files (ulimit -n)"});
  }
  ~FileDescriptor() { close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

  void write_all(const std::string& text) const {
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t n = write(fd_, text.data() + done, text.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0)
        throw Error(ExitCode::kExhausted,
                    {.what = fmt::format("cannot hold a plot in memory: {}", std::strerror(errno)),
                     .fix = "free memory"});
      done += static_cast<std::size_t>(n);
    }
    lseek(fd_, 0, SEEK_SET);
  }

  std::string read_all() const {
    std::string out;
    char chunk[4096];
    off_t at = 0;
    for (;;) {
      const ssize_t n = pread(fd_, chunk, sizeof chunk, at);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      out.append(chunk, static_cast<std::size_t>(n));
      at += n;
    }
    while (!out.empty() && (out.back() == '\n' || out.back() == ' ')) out.pop_back();
    return out;
  }

 private:
  int fd_;
};

struct Finished {
  int spawn_error = 0;  // errno of a program that could not be started
  int status = 0;       // as waitpid gives it
};

Finished spawn_and_wait(const std::string& program, int input, int messages) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, messages, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, messages, STDERR_FILENO);
  std::string name = program;
  std::string defaults = "-d";  // a user's ~/.gnuplot must not change our pictures
  char* const argv[] = {name.data(), defaults.data(), nullptr};
  pid_t child = 0;
  Finished out;
  out.spawn_error = posix_spawnp(&child, program.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (out.spawn_error != 0) return out;
  while (waitpid(child, &out.status, 0) < 0 && errno == EINTR) {
  }
  return out;
}

}  // namespace

void run_gnuplot(const std::string& program, const std::string& script,
                 const std::filesystem::path& target, const std::filesystem::path& partial) {
  const FileDescriptor input("gnuplot script"), messages("gnuplot messages");
  input.write_all(script);
  const Finished run = spawn_and_wait(program, input.get(), messages.get());
  if (run.spawn_error != 0)
    throw Error(ExitCode::kUsage, {.what = fmt::format("cannot start '{}' to draw a picture: {}",
                                                       program, std::strerror(run.spawn_error)),
                                   .where = target.string(),
                                   .fix = "apt-get install gnuplot-nox"});
  std::error_code error;
  const bool exited_well = WIFEXITED(run.status) && WEXITSTATUS(run.status) == 0;
  const auto bytes = std::filesystem::file_size(partial, error);
  if (!exited_well || error || bytes == 0) {
    std::filesystem::remove(partial, error);
    const std::string said = messages.read_all();
    throw Error(ExitCode::kUsage,
                {.what = fmt::format("gnuplot drew no picture{}{}", said.empty() ? "" : ": ", said),
                 .where = target.string(),
                 .fix = "check that the folder exists and is writable and that the disk has room"});
  }
  std::filesystem::rename(partial, target, error);
  if (error)
    throw Error(ExitCode::kUsage, {.what = "cannot put the picture in place: " + error.message(),
                                   .where = target.string(),
                                   .fix = "check that the folder is writable"});
}

}  // namespace farspan
