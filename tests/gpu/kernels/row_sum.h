// y[n] = Σ_c x[n, c]: the example of csrc/gpu/README.md.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

struct RowSum {
  const float* x;  // [N, C], C a multiple of 4
  float* y;        // [N]
  int64_t C;
};

// A block per row. Each thread sums what it loads, 16 bytes at a time; warps meet in registers,
// the block in shared memory.
struct RowSumShared {
  SharedLayout layout;
  Shared<float> partial = layout.take<float>(32);  // of each warp
};

WEFT_KERNEL_BOUNDS(256, 4) void row_sum_kernel(const RowSum p) {
  const RowSumShared smem;
  const float* x = p.x + block().x * p.C;
  float sum = 0;
  for (int64_t c = thread() * 4; c < p.C; c += threads() * 4) {
    const Vec<float, 4> v = load<4, Cache::read_only>(x + c);
    sum += v[0] + v[1] + v[2] + v[3];
  }
  sum = warp_sum(sum);
  if (lane() == 0) smem.partial[warp()] = sum;
  sync_block();
  if (warp() == 0) {
    sum = lane() < threads() / kWarp ? smem.partial[lane()] : 0.0f;
    sum = warp_sum(sum);
    if (lane() == 0) store(p.y + block().x, sum);
  }
}

const Register row_sum("row_sum", [](const Call& call) {
  const int64_t N = call.outputs[0].count, C = call.inputs[0].count / N;
  launch<row_sum_kernel>({.grid = {static_cast<uint32_t>(N)},
                          .block = 256,
                          .shared_bytes = RowSumShared{}.layout.bytes(),
                          .stream = call.stream},
                         RowSum{call.inputs[0].as<float>(), call.outputs[0].as<float>(), C});
});

}  // namespace weft::gpu::tests
