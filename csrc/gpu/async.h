// Work that others do for a thread, and how it is told that the work is done.
//
// copy_async: 4 to 16 bytes per thread from global to shared memory, in groups. sm_80.
// mbarriers: barriers in shared memory that count arrivals and bytes. sm_80; bytes, and the cluster,
// with sm_90.
// bulk copies: thousands of bytes by one thread, to and from shared memory. They go through the
// asynchronous proxy: ordinary stores to shared memory are seen by it after fence_async alone.
// sm_90.
#pragma once

#include "gpu/shared.h"

namespace weft::gpu {

// ---- copy_async

// Elements i … i + N - 1 of `to`, 4, 8 or 16 bytes; those from `valid` on become 0, and are not
// read.
template <int N, class T>
WEFT_DEVICE void copy_async(Shared<T> to, uint32_t i, const T* from, uint32_t valid = N);
// Ends a group: the copies since the last.
WEFT_DEVICE void copy_async_commit();
// Until at most kPending of this thread's newest groups are still under way.
template <int kPending>
WEFT_DEVICE void copy_async_wait();

// ---- mbarriers. A barrier counts arrivals down from `arrivals`, and bytes; when none of either is
// due, its phase ends and the next begins. Phases are told apart by parity: the first has 0. An
// arrival orders what its thread did before; a wait orders what its thread does after.
struct MBarrier {
  uint64_t state;
};

WEFT_DEVICE void mbarrier_init(Shared<MBarrier> barrier, uint32_t arrivals);
// By the thread that has initialised, before a block or cluster barrier: now copies and the cluster
// see it, too.
WEFT_DEVICE void fence_mbarrier_init();
WEFT_DEVICE void mbarrier_invalidate(Shared<MBarrier> barrier);

WEFT_DEVICE void mbarrier_arrive(Shared<MBarrier> barrier, uint32_t count = 1);
// At the barrier of another block of the cluster. Scope::block orders what this thread has read: a
// copy may then overwrite it. Scope::cluster, which takes longer, orders what it has written, too,
// for those who wait with Scope::cluster.
template <Scope kScope = Scope::block>
WEFT_DEVICE void mbarrier_arrive(Remote<MBarrier> barrier);
// `bytes` more are due in this phase; then arrives.
WEFT_DEVICE void mbarrier_arrive_expect(Shared<MBarrier> barrier, uint32_t bytes);
WEFT_DEVICE void mbarrier_expect(Shared<MBarrier> barrier, uint32_t bytes);
// Arrives when all copy_async that this thread has issued so far are done. Counted in `arrivals`.
WEFT_DEVICE void copy_async_arrive(Shared<MBarrier> barrier);

// Has the phase of that parity ended? A fresh barrier says yes for 1: the phase before the first.
// What copies brought is then there, and what threads of the block did; Scope::cluster adds what
// threads of other blocks did before they arrived with that scope.
template <Scope kScope = Scope::block>
WEFT_DEVICE bool mbarrier_try_wait(Shared<MBarrier> barrier, uint32_t parity);
// Until it has.
template <Scope kScope = Scope::block>
WEFT_DEVICE void mbarrier_wait(Shared<MBarrier> barrier, uint32_t parity);

// Of a ring of stages, each with such barriers: the one whose turn it is, and its phase's parity.
template <uint32_t kStages>
struct Turn {
  uint32_t stage = 0, parity = 0;
  WEFT_DEVICE void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// One element, into a block of the cluster, whose barrier at `barrier` then counts its bytes. 4, 8
// or 16 bytes.
template <class V, class T>
WEFT_DEVICE void store_async(Remote<T> to, uint32_t i, const V& v, Shared<MBarrier> barrier);

// ---- bulk copies, issued by one thread. Addresses and sizes are multiples of 16 bytes.

// What this thread, or others that it has waited for, stored in shared memory is now seen by bulk
// copies, tensor copies and wgmma that come later.
WEFT_DEVICE void fence_async();
// The same in global memory, of what threads have stored and copies of other blocks have written,
// before this thread heard of it.
WEFT_DEVICE void fence_async_global();

// The first `count` elements, counted in bytes by the barrier.
template <class T>
WEFT_DEVICE void bulk_load(Shared<T> to, const T* from, uint32_t count, Shared<MBarrier> barrier);
// To the same place in each block of the cluster whose bit is set; each one's barrier counts.
template <class T>
WEFT_DEVICE void bulk_load_multicast(Shared<T> to, const T* from, uint32_t count,
                                     Shared<MBarrier> barrier, uint16_t blocks);
template <class T>
WEFT_DEVICE void bulk_store(T* to, Shared<T> from, uint32_t count);
// to += from, element by element. T: float, bf16, f16, int32_t, uint32_t.
template <class T>
WEFT_DEVICE void bulk_reduce_add(T* to, Shared<T> from, uint32_t count);

// Groups of this thread's stores and reductions, of tensors (tma.h) as well.
WEFT_DEVICE void bulk_commit();
// Until at most kPending groups are under way: written, and seen by this thread.
template <int kPending>
WEFT_DEVICE void bulk_wait();
// Until they have at least been read from shared memory, which may then be written again.
template <int kPending>
WEFT_DEVICE void bulk_wait_read();

}  // namespace weft::gpu
