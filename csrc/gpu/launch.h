// Launching kernels:
//
//   launch<row_sum_kernel<float>>({.grid = {rows}, .block = 256, .stream = stream}, params);
//
// The arguments are converted to the kernel's parameters. Throws when the launch fails.
#pragma once

#include "gpu/base.h"

namespace weft::gpu {

using Stream = void*;  // a cudaStream_t

struct LaunchConfig {
  Dim3 grid = {};
  uint32_t block = kWarp;     // threads
  Dim3 cluster = {};          // blocks; the grid is a multiple of it
  uint32_t shared_bytes = 0;  // dynamic shared memory of a block; as much as the GPU has
  Stream stream = nullptr;
  bool dependent = false;  // may start before its predecessor has ended: see sync.h
};

template <auto kKernel, class... Args>
void launch(const LaunchConfig& config, const Args&... args);

}  // namespace weft::gpu
