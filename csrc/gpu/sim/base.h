// Indices, for the simulator.
#pragma once

#include "gpu/base.h"
#include "gpu/sim/engine.h"

namespace weft::gpu {

constexpr bool kHasWgmma = true;
WEFT_DEVICE void stop() { sim::error("the kernel has stopped"); }

WEFT_DEVICE uint32_t thread() { return sim::running->index; }
WEFT_DEVICE uint32_t threads() { return sim::running->block->threads; }
WEFT_DEVICE uint32_t lane() { return thread() % kWarp; }
WEFT_DEVICE uint32_t warp() { return thread() / kWarp; }
WEFT_DEVICE Dim3 block() { return sim::running->block->index; }
WEFT_DEVICE Dim3 blocks() { return sim::running->block->grid; }
WEFT_DEVICE uint32_t cluster_rank() { return sim::running->block->cluster_rank; }
WEFT_DEVICE uint32_t cluster_blocks() { return sim::running->block->cluster_blocks; }
WEFT_DEVICE uint64_t nanoseconds() { return sim::clock(); }
WEFT_DEVICE int32_t opaque(int32_t x) { return x; }

}  // namespace weft::gpu
