// What the kernels of the backward of attention are called with.
#pragma once

#include "attention/cuda/attention.h"
#include "attention/cuda/backward_plan.h"
#include "attention/cuda/scores.h"

namespace weft::attention::cuda {

struct BackwardCall {
  Backward p;
  BackwardTiles tiles;
  BackwardSm90 sm90;
  Scoring scoring;
  float* rows = nullptr;     // the workspace: {shift, δ} of each row of lse
  float* dq = nullptr;       // of sm_90's kernel: parts of dQ, by blocks of queries …
  uint32_t* done = nullptr;  // … how many have been added, and, behind them, blocks that have begun
  double* sinks = nullptr;   // [H, sinks_parts]
  int64_t sinks_parts = 0;
  float scale = 1;  // softmax_scale, and times log2 e
  float log2_scale = 1;
  int32_t group = 1;    // query heads of a key head
  bool log2 = false;    // shifts are logarithms to base 2
  bool vector = false;  // rows of q, k, v and dout are moved 16 bytes at a time
  bool vector_out = false;
};

// Of sm_90's kernel, the block of queries with which head h of a sequence begins.
WEFT_DEVICE int64_t first_block(const BackwardCall& call, const Sequence& e, int64_t b, int64_t h) {
  const BackwardSm90& own = call.sm90;
  const auto row = static_cast<uint32_t>(e.q_row);
  return h * own.blocks + (call.p.sequences.cu_q ? row / own.queries + b : b * own.longest);
}

// Where `rows` has the shift and the δ of query i of head h. sm_80's kernels read pairs, in the order
// of lse; sm_90's the shifts and the δ of a step.
struct RowPlace {
  int64_t shift, delta;
};
WEFT_DEVICE RowPlace row_place(const BackwardCall& call, const Sequence& e, int64_t b, int64_t h,
                               int64_t i) {
  if (!call.sm90.D) {
    const int64_t row = lse_index(call.p, e, b, h, i);
    return {2 * row, 2 * row + 1};
  }
  const int64_t row = first_block(call, e, b, h) * call.sm90.queries + i, step = call.sm90.step,
                at = row / step * 2 * step + row % step;
  return {at, at + step};
}

// The kernels that make the scores again: one for each dtype of q, of float32 two, by p.allow_tf32.
void backward_sm80_bf16(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream);
void backward_sm80_f16(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream);
void backward_sm80_f32(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream);
void backward_sm80_tf32(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream);
void backward_sm90(const BackwardCall& call, gpu::Stream stream);

}  // namespace weft::attention::cuda
