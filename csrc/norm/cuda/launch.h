// What the launches of the norm family share, on the host.
#pragma once

#include "core/error.h"
#include "gpu/gpu.h"
#include "norm/cuda/plan.h"

namespace weft::norm::cuda {

inline uint32_t grid_size(int64_t blocks) {
  check(blocks <= INT32_MAX, "weft: ", blocks, " blocks are more than a CUDA grid holds");
  return static_cast<uint32_t>(blocks);
}

// A team for each row.
inline gpu::LaunchConfig launch_rows(const Geometry& g, int64_t N, uint32_t shared_bytes,
                                     gpu::Stream stream) {
  const int64_t blocks = gpu::ceil_div<int64_t>(N, g.rows) * g.split;
  return {.grid = {grid_size(blocks)},
          .block = g.threads,
          .cluster = {g.split},
          .shared_bytes = shared_bytes,
          .stream = stream};
}

// f(X{}) for the dtype of x. float64 has been refused.
template <class F>
void with_kernel_type(DType x, const F& f) {
  if (x == DType::bf16)
    f(bf16{});
  else if (x == DType::f16)
    f(f16{});
  else
    f(float{});
}

}  // namespace weft::norm::cuda
