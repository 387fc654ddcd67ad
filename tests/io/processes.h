// Running code in a child process, for tests that kill it or change its limits.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <utility>

namespace farspan::io_test {

// Starts `body` in a child, which ends by exit(body()): libraries run their exit handlers. Call it
// with no other threads running.
template <typename Body>
pid_t start_child(Body&& body) {
  std::cout.flush();
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  int rc = 99;
  try {
    rc = body();
  } catch (const std::exception& e) {
    std::cerr << "child: " << e.what() << '\n';
  }
  std::exit(rc);
}

// The child's wait status.
inline int end_of(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

template <typename Body>
int exit_code_of(Body&& body) {
  const int status = end_of(start_child(std::forward<Body>(body)));
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

// While it lives, root is an ordinary user (others are what they are). Then root again: leak
// checkers need it at exit.
class OrdinaryUser {
 public:
  OrdinaryUser() : was_root_(::geteuid() == 0) {
    if (was_root_ && ::seteuid(65534) != 0) throw std::runtime_error("seteuid");
  }
  OrdinaryUser(const OrdinaryUser&) = delete;
  OrdinaryUser& operator=(const OrdinaryUser&) = delete;
  ~OrdinaryUser() {
    if (was_root_ && ::seteuid(0) != 0) std::abort();
  }

 private:
  bool was_root_;
};

}  // namespace farspan::io_test
