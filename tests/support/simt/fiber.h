// Stacks and the switch between them: what a thread of an emulated block runs on.
//
//   Context host = host_context();
//   Fiber& fiber = fibers.take();       // enters Entry on a stack of its own when first switched
//   to switch_to(host, fiber.context);     // returns when someone switches back to host
//
// Not thread-safe: the emulator runs device code on one host thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace farspan::simt {

struct Context {
  void* stack_pointer = nullptr;
  const std::byte* bottom = nullptr;  // of the stack, for AddressSanitizer
  std::size_t size = 0;
  void* fake_stack = nullptr;
};

// The stack of the calling host thread.
Context host_context();

// Saves the running context in `from` and continues `to`.
void switch_to(Context& from, Context& to);

class Fiber {
 public:
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forgets what it was doing: the next switch to it enters `entry` again.
  void restart();
  bool holds(const void* address) const;  // in the stack or in the guard page below it

  Context context;

 private:
  void (*entry_)();
  std::byte* mapping_;
};

// Fibers that are not in use.
class FiberPool {
 public:
  explicit FiberPool(void (*entry)()) : entry_(entry) {}
  Fiber& take();
  void give(Fiber& fiber) { free_.push_back(&fiber); }

 private:
  void (*entry_)();
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> free_;
};

}  // namespace farspan::simt
