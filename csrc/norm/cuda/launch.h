// What the launches of the norm family share, on the host.
#pragma once

#include "gpu/launch.h"
#include "gpu/plan.h"
#include "norm/cuda/plan.h"

namespace weft::norm::cuda {

using gpu::grid_size, gpu::with_kernel_type;

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

}  // namespace weft::norm::cuda
