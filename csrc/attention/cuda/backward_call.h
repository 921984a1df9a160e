// What the kernels of the backward of attention are called with.
#pragma once

#include "attention/cuda/backward_plan.h"
#include "attention/cuda/scores.h"

namespace weft::attention::cuda {

struct BackwardCall {
  Backward p;
  BackwardTiles tiles;
  Scoring scoring;
  float* rows = nullptr;  // the workspace: {shift, δ} of each row of lse
  float scale = 1;        // softmax_scale, and times log2 e
  float log2_scale = 1;
  int32_t group = 1;    // query heads of a key head
  bool plain = false;   // shifts are logarithms to base 2
  bool vector = false;  // rows of q, k, v and dout are moved 16 bytes at a time
  bool vector_out = false;
};

// One for each dtype of q: the kernels that make the scores again.
void backward_sm80_bf16(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream);
void backward_sm80_f16(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream);
void backward_sm80_f32(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream);

}  // namespace weft::attention::cuda
