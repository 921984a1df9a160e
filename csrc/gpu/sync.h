// Threads that wait for each other, and the order that this gives to their memory accesses. Each
// barrier here orders what its threads accessed before it with what they access after it.
#pragma once

#include "gpu/base.h"

namespace weft::gpu {

WEFT_DEVICE void sync_warp(uint32_t mask = kAllLanes);

// ---- the block
WEFT_DEVICE void sync_block();  // all threads of the block
WEFT_DEVICE bool sync_block_or(bool predicate);
WEFT_DEVICE bool sync_block_and(bool predicate);

// Barriers 1 … 15 of the block (0 is sync_block's), for whole warps. A barrier completes when
// `threads`, a multiple of 32, have come, be it to wait (sync) or not (arrive).
WEFT_DEVICE void sync_named(uint32_t barrier, uint32_t threads);
WEFT_DEVICE void arrive_named(uint32_t barrier, uint32_t threads);

// ---- the cluster (sm_90): all threads arrive, then wait. A block may not end while another may
// still access its shared memory: such kernels end with sync_cluster.
WEFT_DEVICE void cluster_arrive();
WEFT_DEVICE void cluster_arrive_relaxed();  // orders nothing before it
WEFT_DEVICE void cluster_wait();
WEFT_DEVICE void sync_cluster() {
  cluster_arrive();
  cluster_wait();
}

// ---- programmatic dependent launch (LaunchConfig::dependent; sm_90, elsewhere nothing): a kernel
// may start before the one in front of it in the stream has ended.
// Waits until that one has ended and all that it wrote can be seen. Nothing that it writes may be
// read, and nothing that it touches written, before.
WEFT_DEVICE void wait_for_prerequisites();
// This block has no objection to the next kernel's start.
WEFT_DEVICE void allow_dependents();

// ---- registers per thread, moved between the warpgroups of a block (sm_90a; elsewhere nothing):
// a multiple of 8 in 24 … 256, called by all warps of a warpgroup, in a kernel with bounds
// WEFT_KERNEL_BOUNDS(n, 1). increase waits until enough have been given back.
template <int kRegisters>
WEFT_DEVICE void increase_registers();
template <int kRegisters>
WEFT_DEVICE void decrease_registers();

}  // namespace weft::gpu
