#include "support/simt/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#include "core/error.h"
#include "support/simt/sanitizers.h"

#ifndef __x86_64__
#error "the emulator's switch of stacks is written for x86-64"
#endif

// void farspan_simt_switch(void** save, void* load): the registers that a call must keep (System V
// ABI, section 3.2.1) go onto the old stack and come from the new one.
extern "C" void farspan_simt_switch(void** save, void* load);
asm(R"(
.text
.globl farspan_simt_switch
.type farspan_simt_switch, @function
farspan_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size farspan_simt_switch, .-farspan_simt_switch
)");

namespace farspan::simt {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kStackBytes = (kAddressSanitizer ? 512 : 128) << 10;

}  // namespace

Context host_context() {
  thread_local Context context;
  if (context.bottom != nullptr) return context;
  pthread_attr_t attributes;
  void* bottom = nullptr;
  FARSPAN_CHECK(pthread_getattr_np(pthread_self(), &attributes) == 0 &&
                    pthread_attr_getstack(&attributes, &bottom, &context.size) == 0,
                "the host thread's stack is unknown");
  pthread_attr_destroy(&attributes);
  context.bottom = static_cast<const std::byte*>(bottom);
  return context;
}

void switch_to(Context& from, Context& to) {
  start_switch(&from.fake_stack, to.bottom, to.size);
  farspan_simt_switch(&from.stack_pointer, to.stack_pointer);
  finish_switch(from.fake_stack);
}

Fiber::Fiber(void (*entry)()) : entry_(entry) {
  void* memory = mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  FARSPAN_CHECK(memory != MAP_FAILED && mprotect(memory, kPage, PROT_NONE) == 0,
                "no memory for the stack of an emulated thread");
  mapping_ = static_cast<std::byte*>(memory);
  context.bottom = mapping_ + kPage;
  context.size = kStackBytes;
  restart();
}

Fiber::~Fiber() {
  unpoison(mapping_ + kPage, kStackBytes);
  munmap(mapping_, kPage + kStackBytes);
}

void Fiber::restart() {
  unpoison(mapping_ + kPage, kStackBytes);
  // Six registers, the address that the switch returns to, and entry's own return address, none:
  // the stack pointer is then as after a call.
  void* frame[8] = {};
  frame[6] = reinterpret_cast<void*>(entry_);
  std::byte* const top = mapping_ + kPage + kStackBytes;
  std::memcpy(top - sizeof frame, frame, sizeof frame);
  context.stack_pointer = top - sizeof frame;
  context.fake_stack = nullptr;
}

bool Fiber::holds(const void* address) const {
  const auto* const a = static_cast<const std::byte*>(address);
  return a >= mapping_ && a < mapping_ + kPage + kStackBytes;
}

Fiber& FiberPool::take() {
  if (free_.empty()) {
    all_.push_back(std::make_unique<Fiber>(entry_));
    return *all_.back();
  }
  Fiber& fiber = *free_.back();
  free_.pop_back();
  return fiber;
}

}  // namespace farspan::simt
