// How kernels are spelled, and where a thread finds itself. A block of weft is one-dimensional; a
// grid has up to three dimensions.
//
//   template <class T>
//   WEFT_KERNEL_BOUNDS(256, 2) void row_sum_kernel(const Params p) { … }
//
//   WEFT_KERNEL                      a kernel
//   WEFT_KERNEL_BOUNDS(n, m)         a kernel of at most n threads a block, at least m blocks an SM
//   WEFT_DEVICE                      a function that kernels call: always inlined
//   WEFT_GRID_CONSTANT               before a kernel's parameter that is used by address (TensorMap)
//   WEFT_UNROLL                      before a loop whose index counts registers
//   WEFT_NO_UNROLL                   before a loop whose body is long enough
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/inline.h"

#ifdef __CUDACC__
#define WEFT_KERNEL __global__
#define WEFT_KERNEL_BOUNDS(threads, min_blocks) __global__ __launch_bounds__(threads, min_blocks)
#define WEFT_DEVICE __device__ __forceinline__
#define WEFT_GRID_CONSTANT __grid_constant__
#define WEFT_UNROLL _Pragma("unroll")
#define WEFT_NO_UNROLL _Pragma("unroll 1")
#else
#define WEFT_KERNEL
#define WEFT_KERNEL_BOUNDS(threads, min_blocks)
#define WEFT_DEVICE [[gnu::always_inline]] inline
#define WEFT_GRID_CONSTANT
#define WEFT_UNROLL
#define WEFT_NO_UNROLL
#endif

namespace weft::gpu {

constexpr int kWarp = 32;        // threads of a warp
constexpr int kWarpgroup = 128;  // threads of a warpgroup, which executes a wgmma together
constexpr uint32_t kAllLanes = 0xFFFFFFFF;

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  WEFT_INLINE constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

// ---- within the block
WEFT_DEVICE uint32_t thread();   // 0 … threads() - 1
WEFT_DEVICE uint32_t threads();  // of the block
WEFT_DEVICE uint32_t lane();     // thread() % 32
WEFT_DEVICE uint32_t warp();     // thread() / 32

// ---- within the grid
WEFT_DEVICE Dim3 block();   // indices, from 0
WEFT_DEVICE Dim3 blocks();  // of the grid

// ---- within the cluster: blocks that share their shared memory. Without clusters, each block is
// one. sm_90.
WEFT_DEVICE uint32_t cluster_rank();    // of this block in its cluster
WEFT_DEVICE uint32_t cluster_blocks();  // of the cluster

// The GPU's clock, in nanoseconds; it may go in steps of a microsecond.
WEFT_DEVICE uint64_t nanoseconds();

// ---- what is compiled
// kHasWgmma: for sm_90a. A kernel that is made of its words is empty elsewhere, but for stop(),
// which ends it with an error.
WEFT_DEVICE void stop();

// x, of which the compiler knows nothing: what follows from it is computed where it is used, and
// does not lie in registers from outside of a loop on.
WEFT_DEVICE int32_t opaque(int32_t x);

}  // namespace weft::gpu
