// The sum of what the splits of the keys leave.
#pragma once

#include "attention/cuda/finish.h"

namespace weft::attention::cuda {

// o = Σ exp(lse_s - lse) · o_s over the splits, a warp for each row of the result. Cost: the parts are
// read once, 4 · splits bytes an element.
constexpr uint32_t kMergeThreads = 128;

WEFT_KERNEL_BOUNDS(kMergeThreads, 4)
void merge_splits_kernel(WEFT_GRID_CONSTANT const ForwardCall call) {
  const Forward& p = call.p;
  const int64_t row = static_cast<int64_t>(block().x) * (threads() / kWarp) + warp();
  if (row >= p.B * p.S * p.H) return;
  const int64_t h = row % p.H, i = row / p.H % p.S, b = row / p.H / p.S;
  const Sequence e = sequence_of(p, static_cast<int32_t>(b));
  if (i >= e.S) return;
  const float *lses = part_lse(call) + row, *parts = part_out(call) + row * part_columns(p);
  const int64_t next = p.B * p.S * p.H;  // rows of a split

  float most = -__builtin_inff(), total = 0;
  for (int64_t s = 0; s < call.plan.splits; ++s) most = max_nan(most, load(lses + s * next));
  const float base = most == -__builtin_inff() ? 0.0f : most;
  const auto weight = [&](int64_t s) {
    return exp2_approx((load(lses + s * next) - base) * static_cast<float>(kLog2e));
  };
  for (int64_t s = 0; s < call.plan.splits; ++s) total += weight(s);
  const float inverse = total == 0 ? 0.0f : 1 / total;
  const int64_t at = out_index(p, e, h, i);
  for (int64_t d = lane(); d < p.Dv; d += kWarp) {
    float o = 0;
    for (int64_t s = 0; s < call.plan.splits; ++s)
      o = fma(weight(s) * inverse, load(parts + s * next * part_columns(p) + d), o);
    store_out(p, at, h, d, o);
  }
  if (p.lse && lane() == 0)
    store(static_cast<float*>(p.lse) + lse_index(p, e, b, h, i),
          total == 0 ? -__builtin_inff() : fma(log2_exact(total), static_cast<float>(kLn2), most));
}

}  // namespace weft::attention::cuda
