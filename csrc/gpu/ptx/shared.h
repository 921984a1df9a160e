// Shared memory: offsets from the one dynamic allocation of the block, so that the compiler sees
// where each access goes and issues ld.shared and st.shared. PTX ISA: mapa, for the cluster.
#pragma once

#include "gpu/ptx/base.h"
#include "gpu/ptx/global.h"
#include "gpu/shared.h"

namespace weft::gpu {

namespace detail {

extern __shared__ __align__(kSharedAlignment) unsigned char shared_base[];

template <class V>
WEFT_DEVICE V shared_load(uint32_t offset) {
  using R = typename Bits<sizeof(V)>::type;
  const R r = *reinterpret_cast<const R*>(shared_base + offset);
  V v;
  __builtin_memcpy(&v, &r, sizeof v);
  return v;
}

template <class V>
WEFT_DEVICE void shared_store(uint32_t offset, const V& v) {
  using R = typename Bits<sizeof(V)>::type;
  R r;
  __builtin_memcpy(&r, &v, sizeof r);
  *reinterpret_cast<R*>(shared_base + offset) = r;
}

WEFT_DEVICE uint32_t shared_address(uint32_t offset) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_base)) + offset;
}

// The address of the same place in the block of that rank.
WEFT_DEVICE uint32_t remote_address(uint32_t offset, uint32_t rank) {
  uint32_t address = 0;
  WEFT_PTX_SM90(asm volatile(
      "mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(offset)),
      "r"(rank)));
  return address;
}

template <class V>
WEFT_DEVICE V remote_load(uint32_t offset, uint32_t rank) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  [[maybe_unused]] const uint32_t from = remote_address(offset, rank);
  typename Bits<sizeof(V)>::type r{};
  if constexpr (sizeof(V) == 4)
    WEFT_PTX_SM90(
        asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(r) : "r"(from) : "memory"));
  else if constexpr (sizeof(V) == 8)
    WEFT_PTX_SM90(asm volatile("ld.shared::cluster.v2.u32 {%0, %1}, [%2];" : "=r"(r.x),
                               "=r"(r.y) : "r"(from) : "memory"));
  else
    WEFT_PTX_SM90(asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x),
                               "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(from) : "memory"));
  V v;
  __builtin_memcpy(&v, &r, sizeof v);
  return v;
}

template <class V>
WEFT_DEVICE void remote_store(uint32_t offset, uint32_t rank, const V& v) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  [[maybe_unused]] const uint32_t to = remote_address(offset, rank);
  typename Bits<sizeof(V)>::type r;
  __builtin_memcpy(&r, &v, sizeof r);
  if constexpr (sizeof(V) == 4)
    WEFT_PTX_SM90(asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(r) : "memory"));
  else if constexpr (sizeof(V) == 8)
    WEFT_PTX_SM90(asm volatile("st.shared::cluster.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(r.x),
                               "r"(r.y) : "memory"));
  else
    WEFT_PTX_SM90(asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to),
                               "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w) : "memory"));
}

WEFT_DEVICE void check_view(uint64_t, uint32_t, uint32_t, uint32_t) {}

}  // namespace detail

template <class T>
WEFT_DEVICE uint32_t Shared<T>::address() const {
  return detail::shared_address(offset_);
}

template <class T>
WEFT_DEVICE T atomic_add(Shared<T> x, uint32_t i, T v) {
  return atomicAdd_block(reinterpret_cast<T*>(detail::shared_base + x.offset()) + i, v);
}
template <class T>
WEFT_DEVICE T atomic_max(Shared<T> x, uint32_t i, T v) {
  static_assert(!std::is_floating_point_v<T>);
  return atomicMax_block(reinterpret_cast<T*>(detail::shared_base + x.offset()) + i, v);
}

}  // namespace weft::gpu
