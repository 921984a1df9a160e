// Global memory in the simulator: each access is checked, then made.
#pragma once

#include <cstring>

#include "gpu/math.h"
#include "gpu/shared.h"
#include "gpu/sim/engine.h"

namespace weft::gpu {

template <int N, Cache kCache, class T>
WEFT_DEVICE Vec<T, N> load(const T* p) {
  using P = Piece<T, N>;
  Vec<T, N> v;
  for (int k = 0; k < N; k += P::kSize) {
    const void* from = kCache == Cache::read_only
                           ? sim::constant_access(p + k, sizeof(P))
                           : sim::global_access(p + k, sizeof(P), sim::Access::read);
    std::memcpy(&v.data[k], from, sizeof(P));
  }
  return v;
}

template <Cache kCache, class T>
WEFT_DEVICE T load(const T* p) {
  return load<1, kCache>(p)[0];
}

template <Cache kCache, class T, int N>
WEFT_DEVICE void store(T* p, const Vec<T, N>& v) {
  static_assert(kCache != Cache::read_only);
  using P = Piece<T, N>;
  for (int k = 0; k < N; k += P::kSize)
    std::memcpy(sim::global_access(p + k, sizeof(P), sim::Access::write), &v.data[k], sizeof(P));
}

template <Cache kCache, class T>
WEFT_DEVICE void store(T* p, T v) {
  store<kCache>(p, Vec<T, 1>{{v}});
}

namespace detail {

template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T strong_load(const T* p) {
  static_assert(kScope != Scope::cluster);
  // Whoever writes meanwhile is let in before the value is taken.
  sim::synchronise(p, sim::Access::strong_read, kOrder, kScope);
  return *static_cast<const T*>(sim::global_access(p, sizeof(T), sim::Access::strong_read));
}

template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE void strong_store(T* p, T v) {
  static_assert(kScope != Scope::cluster);
  auto* to = static_cast<T*>(sim::global_access(p, sizeof(T), sim::Access::strong_write));
  sim::synchronise(p, sim::Access::strong_write, kOrder, kScope);
  *to = v;
}

template <Scope kScope, Order kOrder, sim::Access kAccess = sim::Access::update, class T, class F>
WEFT_DEVICE T update(T* p, const F& f) {
  static_assert(kScope != Scope::cluster);
  auto* at = static_cast<T*>(sim::global_access(p, sizeof(T), kAccess));
  sim::synchronise(p, kAccess, kOrder, kScope);
  const T before = *at;
  *at = f(before);
  return before;
}

}  // namespace detail

template <Scope kScope, class T>
WEFT_DEVICE T load_relaxed(const T* p) {
  return detail::strong_load<kScope, Order::relaxed>(p);
}
template <Scope kScope, class T>
WEFT_DEVICE T load_acquire(const T* p) {
  return detail::strong_load<kScope, Order::acquire>(p);
}
template <Scope kScope, class T>
WEFT_DEVICE void store_relaxed(T* p, T v) {
  detail::strong_store<kScope, Order::relaxed>(p, v);
}
template <Scope kScope, class T>
WEFT_DEVICE void store_release(T* p, T v) {
  detail::strong_store<kScope, Order::release>(p, v);
}

template <Scope kScope>
WEFT_DEVICE void fence() {
  static_assert(kScope != Scope::cluster);
  sim::memory_fence(kScope);
}

template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_add(T* p, T v) {
  return detail::update<kScope, kOrder, sim::kAdding<T>>(
      p, [=](T x) { return static_cast<T>(x + v); });
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE void reduce_add(T* p, T v) {
  atomic_add<kScope, kOrder>(p, v);
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_max(T* p, T v) {
  return detail::update<kScope, kOrder>(p, [=](T x) { return max(x, v); });
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_min(T* p, T v) {
  return detail::update<kScope, kOrder>(p, [=](T x) { return min(x, v); });
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_exchange(T* p, T v) {
  return detail::update<kScope, kOrder>(p, [=](T) { return v; });
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_compare_exchange(T* p, T expected, T v) {
  return detail::update<kScope, kOrder>(p, [=](T x) { return x == expected ? v : x; });
}

WEFT_DEVICE void prefetch(const void*) {}

}  // namespace weft::gpu
