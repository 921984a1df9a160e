// Asynchronous copies and mbarriers in the simulator.
#pragma once

#include <cstring>
#include <type_traits>

#include "gpu/async.h"
#include "gpu/sim/engine.h"

namespace weft::gpu {

namespace detail {
// to[i] += from[i], for `count` elements.
template <class T>
void add_elements(void* to, const void* from, uint32_t count) {
  auto* a = static_cast<T*>(to);
  const auto* b = static_cast<const T*>(from);
  for (uint32_t i = 0; i < count; ++i) {
    if constexpr (std::is_arithmetic_v<T>)
      a[i] = static_cast<T>(a[i] + b[i]);
    else
      a[i] = convert<T>(to_float(a[i]) + to_float(b[i]));
  }
}
template <class T>
constexpr sim::Reduction kAdd = {sizeof(T), sim::kAdding<T>, add_elements<T>};
}  // namespace detail

template <int N, class T>
WEFT_DEVICE void copy_async(Shared<T> to, uint32_t i, const T* from, uint32_t valid) {
  static_assert(N * sizeof(T) == 4 || N * sizeof(T) == 8 || N * sizeof(T) == 16);
  detail::check_view(i, N, to.count(), sizeof(T));
  sim::copy_async(to.offset() + i * static_cast<uint32_t>(sizeof(T)), from,
                  static_cast<uint32_t>(valid * sizeof(T)), N * sizeof(T));
}
WEFT_DEVICE void copy_async_commit() { sim::copy_async_commit(); }
template <int kPending>
WEFT_DEVICE void copy_async_wait() {
  sim::copy_async_wait(kPending);
}

WEFT_DEVICE void mbarrier_init(Shared<MBarrier> barrier, uint32_t arrivals) {
  detail::check_view(0, 1, barrier.count(), sizeof(MBarrier));
  sim::mbarrier_init(barrier.offset(), arrivals);
}
WEFT_DEVICE void fence_mbarrier_init() { sim::fence_mbarrier_init(); }
WEFT_DEVICE void mbarrier_invalidate(Shared<MBarrier> barrier) {
  sim::mbarrier_invalidate(barrier.offset());
}
WEFT_DEVICE void mbarrier_arrive(Shared<MBarrier> barrier, uint32_t count) {
  sim::mbarrier_arrive(barrier.offset(), count, 0);
}
template <Scope kScope>
WEFT_DEVICE void mbarrier_arrive(Remote<MBarrier> barrier) {
  static_assert(kScope == Scope::block || kScope == Scope::cluster);
  sim::mbarrier_arrive_remote(barrier.rank(), barrier.local().offset(), kScope);
}
WEFT_DEVICE void mbarrier_arrive_expect(Shared<MBarrier> barrier, uint32_t bytes) {
  sim::mbarrier_arrive(barrier.offset(), 1, bytes);
}
WEFT_DEVICE void mbarrier_expect(Shared<MBarrier> barrier, uint32_t bytes) {
  sim::mbarrier_arrive(barrier.offset(), 0, bytes);
}
WEFT_DEVICE void copy_async_arrive(Shared<MBarrier> barrier) {
  sim::copy_async_arrive(barrier.offset());
}
template <Scope kScope>
WEFT_DEVICE bool mbarrier_try_wait(Shared<MBarrier> barrier, uint32_t parity) {
  static_assert(kScope == Scope::block || kScope == Scope::cluster);
  return sim::mbarrier_wait(barrier.offset(), parity, kScope, false);
}
template <Scope kScope>
WEFT_DEVICE void mbarrier_wait(Shared<MBarrier> barrier, uint32_t parity) {
  static_assert(kScope == Scope::block || kScope == Scope::cluster);
  sim::mbarrier_wait(barrier.offset(), parity, kScope, true);
}

template <class V, class T>
WEFT_DEVICE void store_async(Remote<T> to, uint32_t i, const V& v, Shared<MBarrier> barrier) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  detail::check_view(i, sizeof(V) / sizeof(T), to.local().count(), sizeof(T));
  sim::store_async(to.rank(), to.local().offset() + i * static_cast<uint32_t>(sizeof(T)), &v,
                   sizeof(V), barrier.offset());
}

WEFT_DEVICE void fence_async() { sim::fence_async(); }
WEFT_DEVICE void fence_async_global() { sim::fence_async_global(); }

template <class T>
WEFT_DEVICE void bulk_load(Shared<T> to, const T* from, uint32_t count, Shared<MBarrier> barrier) {
  detail::check_view(0, count, to.count(), sizeof(T));
  sim::bulk_load(to.offset(), from, static_cast<uint32_t>(count * sizeof(T)), barrier.offset(), 0);
}
template <class T>
WEFT_DEVICE void bulk_load_multicast(Shared<T> to, const T* from, uint32_t count,
                                     Shared<MBarrier> barrier, uint16_t blocks) {
  detail::check_view(0, count, to.count(), sizeof(T));
  sim::bulk_load(to.offset(), from, static_cast<uint32_t>(count * sizeof(T)), barrier.offset(),
                 blocks);
}
template <class T>
WEFT_DEVICE void bulk_store(T* to, Shared<T> from, uint32_t count) {
  detail::check_view(0, count, from.count(), sizeof(T));
  sim::bulk_store(to, from.offset(), static_cast<uint32_t>(count * sizeof(T)), nullptr);
}
template <class T>
WEFT_DEVICE void bulk_reduce_add(T* to, Shared<T> from, uint32_t count) {
  detail::check_view(0, count, from.count(), sizeof(T));
  sim::bulk_store(to, from.offset(), static_cast<uint32_t>(count * sizeof(T)), &detail::kAdd<T>);
}
WEFT_DEVICE void bulk_commit() { sim::bulk_commit(); }
template <int kPending>
WEFT_DEVICE void bulk_wait() {
  sim::bulk_wait(kPending, false);
}
template <int kPending>
WEFT_DEVICE void bulk_wait_read() {
  sim::bulk_wait(kPending, true);
}

}  // namespace weft::gpu
