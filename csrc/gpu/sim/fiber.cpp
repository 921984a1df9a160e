// Stacks and switches; see fiber.h.
#include "gpu/sim/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "core/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace weft::gpu::sim {
namespace {

// Kernels keep their registers here. Pages are only taken when touched.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

}  // namespace

#if defined(WEFT_SIM_OWN_SWITCH)
// void weft_sim_switch(void** save, void* load): pushes what a callee must keep, swaps stacks, pops.
asm(R"(
.text
.align 16
.hidden weft_sim_switch
.globl weft_sim_switch
.type weft_sim_switch, @function
weft_sim_switch:
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
.size weft_sim_switch, .-weft_sim_switch
)");
extern "C" void weft_sim_switch(void** save, void* load);
#endif

Fiber::~Fiber() {
  if (!stack_) return;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  munmap(stack_, kStackBytes);
}

void Fiber::start(void (*entry)()) {
  if (!stack_) {
    stack_ = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    check(stack_ != MAP_FAILED, "simulator: no memory for the stack of a thread");
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mprotect(stack_, page, PROT_NONE);
    bottom_ = stack_;
    size_ = kStackBytes;
  }
  sanitizer_stack_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  // The functions that the last run was left in have never returned.
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#if defined(WEFT_SIM_OWN_SWITCH)
  // Six registers, the address that `ret` takes, and the return address of an entry, which has none:
  // at a function's first instruction the stack pointer is 8 off a multiple of 16.
  auto* top = reinterpret_cast<uint64_t*>(static_cast<char*>(stack_) + kStackBytes) - 8;
  for (int i = 0; i < 8; ++i) top[i] = 0;
  top[6] = reinterpret_cast<uint64_t>(entry);
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_to(Fiber& other) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&sanitizer_stack_, other.bottom_, other.size_);
#endif
#if defined(WEFT_SIM_OWN_SWITCH)
  weft_sim_switch(&stack_pointer_, other.stack_pointer_);
#else
  swapcontext(&context_, &other.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(sanitizer_stack_, nullptr, nullptr);
#endif
}

void Fiber::entered([[maybe_unused]] Fiber& host) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!host.bottom_) host.bottom_ = bottom, host.size_ = size;
#endif
}

}  // namespace weft::gpu::sim
