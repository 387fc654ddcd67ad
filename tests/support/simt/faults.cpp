#include "support/simt/faults.h"

#include <fmt/format.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>

#include "support/simt/block.h"
#include "support/simt/memory.h"
#include "support/simt/sanitizers.h"
#include "support/simt/symbols.h"

namespace farspan::simt {
namespace {

// What the handler leaves for land(), which runs in its place once the handler has returned.
struct Fault {
  int signal = 0;
  void* address = nullptr;
  void* instruction = nullptr;
};
thread_local Fault fault;

std::string describe(const Fault& f) {
  const std::string in = fmt::format(" (in {})", symbol_name(f.instruction));
  if (f.signal == SIGILL)
    return "a check of the compiler failed: an unaligned access, an index outside its array, or a "
           "shift or conversion out of range" +
           in;
  if (f.signal == SIGFPE) return "division of an integer by zero" + in;
  if (in_running_stack(f.address)) return "the stack of an emulated thread is too small" + in;
  if (f.address == nullptr) return "access to address 0, or an unaligned vector access" + in;
  return fmt::format("access to {}: {}{}", f.address, memory().describe(f.address), in);
}

[[noreturn]] void land() { abandon(describe(fault)); }

void handle(int signal, siginfo_t* info, void* context) {
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  void* const instruction = reinterpret_cast<void*>(registers[REG_RIP]);
  if (!kernel_is_running()) {
    const std::string text = fmt::format(
        "\nfault in host code, signal {}, at {}: {} (in {})\nHost code may touch device memory "
        "through copies only.\n",
        signal, info->si_addr, memory().describe(info->si_addr), symbol_name(instruction));
    (void)!write(STDERR_FILENO, text.data(), text.size());
    ::signal(signal, SIG_DFL);
    return;  // again, to its end
  }
  fault = {signal, info->si_addr, instruction};
  // Continues on the emptied stack of the thread, which never runs again.
  registers[REG_RSP] =
      static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(top_of_running_stack())) - 8;
  registers[REG_RIP] = static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(&land));
}

#ifdef __SANITIZE_ADDRESS__
void say_where(const char*) {
  if (kernel_is_running()) std::fprintf(stderr, "in %s\n", running_place().c_str());
}
void install_handlers() { __asan_set_error_report_callback(say_where); }
#else
void install_handlers() {
  struct sigaction action {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(signal, &action, nullptr);
}
#endif

// The stack on which a thread's signals are handled, for as long as the thread lives.
class SignalStack {
 public:
  SignalStack() : memory_(std::make_unique<std::byte[]>(kBytes)) {
    const stack_t stack{.ss_sp = memory_.get(), .ss_flags = 0, .ss_size = kBytes};
    sigaltstack(&stack, nullptr);
  }
  ~SignalStack() {
    const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = kBytes};
    sigaltstack(&none, nullptr);
  }
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

 private:
  static constexpr std::size_t kBytes = std::size_t{64} << 10;
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace

void catch_faults_of_this_thread() {
  static std::once_flag once;
  std::call_once(once, install_handlers);
  if (!kAddressSanitizer) thread_local const SignalStack stack;
}

}  // namespace farspan::simt
