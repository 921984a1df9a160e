// Barriers; PTX ISA: bar, barrier.cluster, griddepcontrol, setmaxnreg.
#pragma once

#include "gpu/ptx/base.h"
#include "gpu/sync.h"

namespace weft::gpu {

WEFT_DEVICE void sync_warp(uint32_t mask) { __syncwarp(mask); }
WEFT_DEVICE void sync_block() { __syncthreads(); }
WEFT_DEVICE bool sync_block_or(bool predicate) { return __syncthreads_or(predicate); }
WEFT_DEVICE bool sync_block_and(bool predicate) { return __syncthreads_and(predicate); }

WEFT_DEVICE void sync_named(uint32_t barrier, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
WEFT_DEVICE void arrive_named(uint32_t barrier, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

WEFT_DEVICE void cluster_arrive() {
  WEFT_PTX_SM90(asm volatile("barrier.cluster.arrive.release.aligned;" :: : "memory"));
}
WEFT_DEVICE void cluster_arrive_relaxed() {
  WEFT_PTX_SM90(asm volatile("barrier.cluster.arrive.relaxed.aligned;" :: : "memory"));
}
WEFT_DEVICE void cluster_wait() {
  WEFT_PTX_SM90(asm volatile("barrier.cluster.wait.acquire.aligned;" :: : "memory"));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
WEFT_DEVICE void wait_for_prerequisites() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
WEFT_DEVICE void allow_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
#else  // a kernel starts there when the one before has ended
WEFT_DEVICE void wait_for_prerequisites() {}
WEFT_DEVICE void allow_dependents() {}
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int kRegisters>
WEFT_DEVICE void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
WEFT_DEVICE void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
#else  // a matter of speed alone
template <int kRegisters>
WEFT_DEVICE void increase_registers() {}
template <int kRegisters>
WEFT_DEVICE void decrease_registers() {}
#endif

}  // namespace weft::gpu
