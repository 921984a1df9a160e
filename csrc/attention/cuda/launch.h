// What the launches of the attention family share, on the host.
#pragma once

#include "attention/cuda/attention.h"
#include "attention/cuda/finish.h"
#include "core/error.h"

namespace weft::attention::cuda {

inline uint32_t grid_size(int64_t blocks) {
  check(blocks <= INT32_MAX, "weft: ", blocks, " blocks are more than a CUDA grid holds");
  return static_cast<uint32_t>(blocks);
}

void forward_sm90(const ForwardCall&, const Device&);
// One for each dtype of q.
void forward_sm80_bf16(const ForwardCall&, const Device&);
void forward_sm80_f16(const ForwardCall&, const Device&);
void forward_sm80_f32(const ForwardCall&, const Device&);

}  // namespace weft::attention::cuda
