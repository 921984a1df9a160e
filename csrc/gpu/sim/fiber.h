// Stacks, and the switch between them. A fiber runs until it calls switch_fiber; the callee-saved
// registers of the x86-64 System V ABI are then on its stack, and its stack pointer is all that is
// kept of it. Other architectures go through ucontext, some twenty times slower; WEFT_SIM_UCONTEXT
// asks for that.
#pragma once

#include <cstddef>

#if defined(__x86_64__) && !defined(WEFT_SIM_UCONTEXT)
#define WEFT_SIM_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace weft::gpu::sim {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // From its next switch on, the fiber runs `entry`, which never returns, on a stack of its own.
  void start(void (*entry)());

  // Leaves this fiber, which is running, for another. A thread of the host is a fiber, too, one
  // that was never started.
  void switch_to(Fiber& other);

  // To be called first by an entry. The first one after a host's thread has left its fiber, `host`,
  // was entered from there.
  void entered(Fiber& host);

 private:
#if defined(WEFT_SIM_OWN_SWITCH)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  void* stack_ = nullptr;            // lowest address, a guard page
  void* sanitizer_stack_ = nullptr;  // AddressSanitizer's, while the fiber does not run
  const void* bottom_ = nullptr;     // for AddressSanitizer: of the stack that the fiber runs on
  size_t size_ = 0;
};

}  // namespace weft::gpu::sim
