// Indices, and what all of ptx/ shares. "PTX ISA: x" names the section of the PTX ISA manual,
// version 9.0, that describes x.
#pragma once

#include "gpu/base.h"

// An instruction of sm_90 in a kernel that is compiled for an older GPU as well: there it stops the
// kernel, and launch() has refused the launch before.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define WEFT_PTX_SM90(...) __VA_ARGS__
#else
#define WEFT_PTX_SM90(...) __trap()
#endif
// The same for those of sm_90a, which are no part of other GPUs.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WEFT_PTX_SM90A(...) __VA_ARGS__
#else
#define WEFT_PTX_SM90A(...) __trap()
#endif

namespace weft::gpu {

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

WEFT_DEVICE void stop() { __trap(); }

WEFT_DEVICE uint32_t thread() { return threadIdx.x; }
WEFT_DEVICE uint32_t threads() { return blockDim.x; }

// The position in the warp equals threadIdx.x % 32 in one-dimensional blocks.
WEFT_DEVICE uint32_t lane() { return threadIdx.x % kWarp; }

WEFT_DEVICE uint32_t warp() { return threadIdx.x / kWarp; }

WEFT_DEVICE Dim3 block() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
WEFT_DEVICE Dim3 blocks() { return {gridDim.x, gridDim.y, gridDim.z}; }

// PTX ISA: Special Registers, %cluster_ctarank and %cluster_nctarank.
WEFT_DEVICE uint32_t cluster_rank() {
  uint32_t rank = 0;
  WEFT_PTX_SM90(asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)));
  return rank;
}
WEFT_DEVICE uint32_t cluster_blocks() {
  uint32_t count = 1;
  WEFT_PTX_SM90(asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count)));
  return count;
}

// PTX ISA: Special Registers, %globaltimer.
WEFT_DEVICE uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

WEFT_DEVICE int32_t opaque(int32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace weft::gpu
