// Votes and shuffles; PTX ISA: shfl.sync, vote.sync, through nvcc's intrinsics.
#pragma once

#include "gpu/ptx/base.h"
#include "gpu/warp.h"

namespace weft::gpu {

WEFT_DEVICE uint32_t ballot(bool predicate, uint32_t mask) {
  return __ballot_sync(mask, predicate);
}
WEFT_DEVICE bool any(bool predicate, uint32_t mask) { return __any_sync(mask, predicate); }
WEFT_DEVICE bool all(bool predicate, uint32_t mask) { return __all_sync(mask, predicate); }

WEFT_DEVICE uint32_t shuffle_word(uint32_t word, uint32_t source, uint32_t width) {
  return __shfl_sync(kAllLanes, word, static_cast<int>(source), static_cast<int>(width));
}
WEFT_DEVICE uint32_t shuffle_xor_word(uint32_t word, uint32_t lanes, uint32_t width) {
  return __shfl_xor_sync(kAllLanes, word, static_cast<int>(lanes), static_cast<int>(width));
}
WEFT_DEVICE uint32_t shuffle_down_word(uint32_t word, uint32_t by, uint32_t width) {
  return __shfl_down_sync(kAllLanes, word, by, static_cast<int>(width));
}
WEFT_DEVICE uint32_t shuffle_up_word(uint32_t word, uint32_t by, uint32_t width) {
  return __shfl_up_sync(kAllLanes, word, by, static_cast<int>(width));
}

// PTX ISA: elect.sync. ptxas knows that what follows runs in one thread.
WEFT_DEVICE bool elect() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  uint32_t elected;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(elected));
  return elected != 0;
#else
  return lane() == 0;
#endif
}

}  // namespace weft::gpu
