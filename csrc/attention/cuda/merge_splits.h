// The sum of what the splits of the keys leave.
#pragma once

#include "attention/cuda/finish.h"

namespace weft::attention::cuda {

// o = Σ exp(lse_s - lse) · o_s over the splits, for each row of the result. `warps` take a row, every
// warps-th split each, eight at a time under way; what they have is added in their order. Cost: the
// parts are read once, 4 · splits bytes an element.
constexpr uint32_t kMergeThreads = 256, kMergeWarps = kMergeThreads / kWarp;
constexpr int64_t kMergeSplits = 8;  // at a time

struct MergeShared {
  SharedLayout layout;
  Shared<float> sums = layout.take<float>(kMergeWarps * kMostElements);
};

// Of a row: a power of two, with few splits each.
WEFT_INLINE constexpr uint32_t merge_warps(int64_t splits) {
  uint32_t warps = 1;
  while (warps < kMergeWarps && splits > kMergeSplits * warps) warps *= 2;
  return warps;
}

WEFT_KERNEL_BOUNDS(kMergeThreads, 4)
void merge_splits_kernel(WEFT_GRID_CONSTANT const ForwardCall call, const uint32_t warps) {
  const Forward& p = call.p;
  const MergeShared smem;
  const int64_t next = part_rows(call), splits = call.plan.splits, S = call.plan.queries;
  const int64_t row = int64_t{block().x} * (kMergeWarps / warps) + warp() / warps;
  const int64_t h = row % p.H, i = row / p.H % S, b = min(row / p.H / S, p.B - 1);
  const Sequence e = sequence_of(p, static_cast<int32_t>(b));
  const bool here = row < next && i < e.S && call.plan.takes(e.S);
  const int64_t own = warp() % warps;  // the warp's first split
  const float *lses = part_lse(call) + row, *parts = part_out(call) + row * part_columns(p);

  float most = -__builtin_inff(), total = 0;
  for (int64_t s = lane(); here && s < splits; s += kWarp)
    most = max_nan(most, load(lses + s * next));
  most = warp_reduce(most, [](float x, float y) { return max_nan(x, y); });
  const float base = most == -__builtin_inff() ? 0.0f : most;
  const auto weight = [&](int64_t s) {
    return exp2_approx((load(lses + s * next) - base) * static_cast<float>(kLog2e));
  };
  for (int64_t s = lane(); here && s < splits; s += kWarp) total += weight(s);
  total = warp_sum(total);
  const float inverse = total == 0 ? 0.0f : 1 / total;

  const int64_t at = out_index(p, e, h, i);
  for (int64_t d = 2 * lane(); here && d < p.Dv; d += 2 * kWarp) {
    Vec<float, 2> o = {};
    for (int64_t first = own; first < splits; first += kMergeSplits * warps) {
      WEFT_UNROLL
      for (int64_t k = 0; k < kMergeSplits; ++k) {
        const int64_t s = first + k * warps;
        if (s >= splits) continue;
        const float factor = weight(s) * inverse;
        const Vec<float, 2> part = load<2>(parts + s * next * part_columns(p) + d);
        o[0] = fma(factor, part[0], o[0]), o[1] = fma(factor, part[1], o[1]);
      }
    }
    if (warps > 1) {
      smem.sums.store(warp() * kMostElements + static_cast<uint32_t>(d), o);
      continue;
    }
    store_out(p, at, h, d, o[0]);
    if (d + 1 < p.Dv) store_out(p, at, h, d + 1, o[1]);
  }
  if (warps > 1) {
    sync_block();
    for (int64_t d = own * kWarp + lane(); here && d < p.Dv; d += warps * kWarp) {
      float o = 0;
      for (uint32_t w = warp() - static_cast<uint32_t>(own), last = w + warps; w < last; ++w)
        o += smem.sums[w * kMostElements + static_cast<uint32_t>(d)];
      store_out(p, at, h, d, o);
    }
  }
  if (here && p.lse && own == 0 && lane() == 0)
    store(static_cast<float*>(p.lse) + lse_index(p, e, b, h, i),
          total == 0 ? -__builtin_inff() : fma(log2_exact(total), static_cast<float>(kLn2), most));
}

}  // namespace weft::attention::cuda
