// Owns fibers: stacks that one operating-system thread switches between, one for each emulated CUDA thread.
#pragma once

#include <cstddef>
#include <memory>

namespace flash3::emulator {

// A place to continue from. Switching costs a few nanoseconds: callee-saved registers and the stack pointer.
class Fiber {
 public:
  // The context of whoever calls switch_to first.
  Fiber();
  // A fiber that runs entry(argument) when first switched to. entry never returns: it switches away for the last time.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Starts over with a new entry on the same stack.
  void restart(void (*entry)(void*), void* argument);

  // Saves the running context in *this and continues `next`.
  void switch_to(Fiber& next);

 private:
  struct Context;
  std::unique_ptr<Context> context_;
  bool owns_stack_ = false;
};

}  // namespace flash3::emulator
