// Owns the context switch: by hand on x86-64, through ucontext elsewhere.
#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

// By hand where it is known how, unless a test asks for the other way.
#if defined(__x86_64__) && !defined(FLASH3_FIBER_UCONTEXT)
#define FLASH3_FIBER_BY_HAND 1
#else
#define FLASH3_FIBER_BY_HAND 0
#include <ucontext.h>
#endif

// The sanitizers want to know of every switch.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace flash3::emulator {
namespace {

// Pages are touched only when used, so generous; the lowest one stays unmapped to stop an overflow.
constexpr std::size_t stack_bytes = 512 * 1024;

void* map_stack() {
  void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  mprotect(stack, static_cast<std::size_t>(getpagesize()), PROT_NONE);
  return stack;
}

}  // namespace

struct Fiber::Context {
  void* stack = nullptr;  // of the first context: what the operating system gave, unknown until somebody leaves it
  std::size_t bytes = 0;
  void (*entry)(void*) = nullptr;
  void* argument = nullptr;
  Context* from = nullptr;  // who switched here last
#if FLASH3_FIBER_BY_HAND
  void* stack_pointer = nullptr;
#else
  ucontext_t registers = {};
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
#endif

  static void arrive(Context& here, void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    const void* stack = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
    here.from->stack = const_cast<void*>(stack);
    here.from->bytes = bytes;
#else
    static_cast<void>(here);
    static_cast<void>(fake_stack);
#endif
  }

  // What a fiber runs first.
  static void begin(void* context) {
    Context& here = *static_cast<Context*>(context);
    arrive(here, nullptr);
    here.entry(here.argument);
  }
};

#if FLASH3_FIBER_BY_HAND

extern "C" void flash3_fiber_switch(void** save, void* load);
extern "C" void flash3_fiber_start();

// switch: callee-saved registers go onto the old stack and come from the new one. start: what a new fiber "returns" to;
// function and argument wait in r12 and r13.
asm(R"(
.text
.globl flash3_fiber_switch
.hidden flash3_fiber_switch
.type flash3_fiber_switch, @function
flash3_fiber_switch:
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
.size flash3_fiber_switch, .-flash3_fiber_switch

.globl flash3_fiber_start
.hidden flash3_fiber_start
.type flash3_fiber_start, @function
flash3_fiber_start:
  movq %r13, %rdi
  callq *%r12
  ud2
.size flash3_fiber_start, .-flash3_fiber_start
)");

namespace {

void prepare(void*& stack_pointer, void* stack, void (*function)(void*), void* argument) {
  auto* top = reinterpret_cast<void**>(static_cast<char*>(stack) + stack_bytes);
  // From the top: two words that keep the ABI's alignment at the call, the return address, rbp, rbx, r12 ... r15.
  void* const words[] = {nullptr,  nullptr, reinterpret_cast<void*>(&flash3_fiber_start),
                         nullptr,  nullptr, reinterpret_cast<void*>(function),
                         argument, nullptr, nullptr};
  for (void* word : words) *--top = word;
  stack_pointer = top;
}

void change(void*& from, void*& to) { flash3_fiber_switch(&from, to); }

}  // namespace
#define FLASH3_SAVED stack_pointer

#else

namespace {

// makecontext passes ints only: the two pointers travel in halves.
void start(unsigned function_high, unsigned function_low, unsigned argument_high, unsigned argument_low) {
  const auto join = [](unsigned high, unsigned low) { return (static_cast<std::uintptr_t>(high) << 32) | low; };
  reinterpret_cast<void (*)(void*)>(join(function_high, function_low))(
      reinterpret_cast<void*>(join(argument_high, argument_low)));
}

void prepare(ucontext_t& registers, void* stack, void (*function)(void*), void* argument) {
  getcontext(&registers);
  registers.uc_stack.ss_sp = stack;
  registers.uc_stack.ss_size = stack_bytes;
  registers.uc_link = nullptr;
  const auto f = reinterpret_cast<std::uintptr_t>(function), a = reinterpret_cast<std::uintptr_t>(argument);
  makecontext(&registers, reinterpret_cast<void (*)()>(&start), 4, static_cast<unsigned>(f >> 32),
              static_cast<unsigned>(f), static_cast<unsigned>(a >> 32), static_cast<unsigned>(a));
}

void change(ucontext_t& from, ucontext_t& to) { swapcontext(&from, &to); }

}  // namespace
#define FLASH3_SAVED registers

#endif

void Fiber::restart(void (*entry)(void*), void* argument) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(context_->stack, stack_bytes);  // frames of a thread that was given up
#endif
  context_->entry = entry;
  context_->argument = argument;
  prepare(context_->FLASH3_SAVED, context_->stack, &Context::begin, context_.get());
}

void Fiber::switch_to(Fiber& next) {
  Context& here = *context_;
  Context& there = *next.context_;
  there.from = &here;
  void* fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack, there.stack, there.bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  if (here.tsan == nullptr) here.tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(there.tsan, 0);
#endif
  change(here.FLASH3_SAVED, there.FLASH3_SAVED);
  Context::arrive(here, fake_stack);
}

Fiber::Fiber() : context_(std::make_unique<Context>()) {}

Fiber::Fiber(void (*entry)(void*), void* argument) : Fiber() {
  context_->stack = map_stack();
  context_->bytes = stack_bytes;
  owns_stack_ = true;
#if defined(__SANITIZE_THREAD__)
  context_->tsan = __tsan_create_fiber(0);
#endif
  restart(entry, argument);
}

Fiber::~Fiber() {
  if (!owns_stack_) return;
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(context_->tsan);
#endif
  munmap(context_->stack, stack_bytes);
}

}  // namespace flash3::emulator
