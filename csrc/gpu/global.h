// Global memory: loads and stores with cache hints, accesses that synchronise, atomics.
//
// load<N>(p) and store(p, vec) move N elements at a naturally aligned address: N · sizeof(T) bytes,
// in pieces of 16 where that is more.
#pragma once

#include "core/dtype.h"
#include "gpu/vec.h"

namespace weft::gpu {

enum class Cache {
  normal,
  streaming,  // evict first: data that is touched once
  read_only,  // loads only, past L1: data that nobody writes while the kernel runs
};

// Whom an access synchronises with: threads of the block, of the cluster (mbarriers only), of the GPU,
// of all GPUs and the CPU.
enum class Scope { block, cluster, gpu, system };

template <int N, Cache kCache = Cache::normal, class T>
WEFT_DEVICE Vec<T, N> load(const T* p);
template <Cache kCache = Cache::normal, class T>
WEFT_DEVICE T load(const T* p);
template <Cache kCache = Cache::normal, class T, int N>
WEFT_DEVICE void store(T* p, const Vec<T, N>& v);
template <Cache kCache = Cache::normal, class T>
WEFT_DEVICE void store(T* p, T v);

// ---- accesses that may race by intent: 4 or 8 bytes. What was written before a release is seen
// after an acquire that reads it (or a later value of the chain). relaxed orders nothing.
template <Scope kScope, class T>
WEFT_DEVICE T load_relaxed(const T* p);
template <Scope kScope, class T>
WEFT_DEVICE T load_acquire(const T* p);
template <Scope kScope, class T>
WEFT_DEVICE void store_relaxed(T* p, T v);
template <Scope kScope, class T>
WEFT_DEVICE void store_release(T* p, T v);

// Orders all of this thread's accesses before it with all after it, for the threads of the scope.
template <Scope kScope>
WEFT_DEVICE void fence();

// ---- atomics. They give back what was there; reduce_… does not, and is cheaper.
enum class Order { relaxed, acquire, release, acquire_release };

// T: uint32_t, int32_t, uint64_t, float, double.
template <Scope kScope = Scope::gpu, Order kOrder = Order::relaxed, class T>
WEFT_DEVICE T atomic_add(T* p, T v);
template <Scope kScope = Scope::gpu, Order kOrder = Order::relaxed, class T>
WEFT_DEVICE void reduce_add(T* p, T v);
// T: uint32_t, int32_t, uint64_t.
template <Scope kScope = Scope::gpu, Order kOrder = Order::relaxed, class T>
WEFT_DEVICE T atomic_max(T* p, T v);
template <Scope kScope = Scope::gpu, Order kOrder = Order::relaxed, class T>
WEFT_DEVICE T atomic_min(T* p, T v);
// T: uint32_t, int32_t, uint64_t.
template <Scope kScope = Scope::gpu, Order kOrder = Order::relaxed, class T>
WEFT_DEVICE T atomic_exchange(T* p, T v);
// Writes v where `expected` stands.
template <Scope kScope = Scope::gpu, Order kOrder = Order::relaxed, class T>
WEFT_DEVICE T atomic_compare_exchange(T* p, T expected, T v);

// Asks for a line to be brought into L2.
WEFT_DEVICE void prefetch(const void* p);

}  // namespace weft::gpu
