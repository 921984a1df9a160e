// Shared memory in the simulator: each access is checked, then made.
#pragma once

#include <cstring>

#include "gpu/shared.h"
#include "gpu/sim/engine.h"

namespace weft::gpu {

namespace detail {

template <class V>
WEFT_DEVICE V shared_load(uint32_t offset) {
  V v;
  std::memcpy(&v, sim::shared_access(offset, sizeof(V), sim::Access::read), sizeof(V));
  return v;
}

template <class V>
WEFT_DEVICE void shared_store(uint32_t offset, const V& v) {
  std::memcpy(sim::shared_access(offset, sizeof(V), sim::Access::write), &v, sizeof(V));
}

template <class V>
WEFT_DEVICE V remote_load(uint32_t offset, uint32_t rank) {
  V v;
  std::memcpy(&v, sim::remote_access(rank, offset, sizeof(V), sim::Access::read), sizeof(V));
  return v;
}

template <class V>
WEFT_DEVICE void remote_store(uint32_t offset, uint32_t rank, const V& v) {
  std::memcpy(sim::remote_access(rank, offset, sizeof(V), sim::Access::write), &v, sizeof(V));
}

WEFT_DEVICE void check_view(uint64_t i, uint32_t n, uint32_t count, uint32_t element_bytes) {
  if (i + n > count) [[unlikely]]
    sim::view_error(i, n, count, element_bytes);
}

template <sim::Access kAccess = sim::Access::update, class T, class F>
WEFT_DEVICE T shared_update(Shared<T> x, uint32_t i, const F& f) {
  check_view(i, 1, x.count(), sizeof(T));
  auto* at = static_cast<T*>(
      sim::shared_access(x.offset() + i * static_cast<uint32_t>(sizeof(T)), sizeof(T), kAccess));
  const T before = *at;
  *at = f(before);
  return before;
}

}  // namespace detail

template <class T>
WEFT_DEVICE uint32_t Shared<T>::address() const {
  return sim::shared_window(offset_);
}

template <class T>
WEFT_DEVICE T atomic_add(Shared<T> x, uint32_t i, T v) {
  return detail::shared_update<sim::kAdding<T>>(
      x, i, [=](T before) { return static_cast<T>(before + v); });
}
template <class T>
WEFT_DEVICE T atomic_max(Shared<T> x, uint32_t i, T v) {
  return detail::shared_update(x, i, [=](T before) { return before < v ? v : before; });
}

}  // namespace weft::gpu
