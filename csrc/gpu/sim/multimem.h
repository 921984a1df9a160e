// Multicast memory in the simulator: a word does to every replica what it says (sim::Multicast).
#pragma once

#include <cstring>

#include "gpu/multimem.h"
#include "gpu/sim/global.h"

namespace weft::gpu {

template <class T>
WEFT_DEVICE Vec<T, kVecSize<T>> multimem_load_add(const T* p) {
  auto sum = Vec<float, kVecSize<T>>::filled(0);
  for (uint32_t i = 0; i < sim::replicas(p); ++i) {
    Vec<T, kVecSize<T>> v;
    std::memcpy(&v, sim::replica_access(p, i, kVectorBytes, sim::Access::strong_read), sizeof v);
    for (int j = 0; j < kVecSize<T>; ++j) sum[j] += convert<float>(v[j]);
  }
  return convert<T>(sum);
}

template <class T>
WEFT_DEVICE void multimem_store(T* p, const Vec<T, kVecSize<T>>& v) {
  for (uint32_t i = 0; i < sim::replicas(p); ++i)
    std::memcpy(sim::replica_access(p, i, kVectorBytes, sim::Access::strong_write), &v, sizeof v);
}

template <Order kOrder>
WEFT_DEVICE void multimem_add(uint32_t* p, uint32_t v) {
  for (uint32_t i = 0; i < sim::replicas(p); ++i) {
    auto* at =
        static_cast<uint32_t*>(sim::replica_access(p, i, sizeof(uint32_t), sim::Access::update));
    sim::synchronise(at, sim::Access::update, kOrder, Scope::system);
    *at += v;
  }
}

WEFT_DEVICE void fence_alias() { sim::fence_alias(); }

}  // namespace weft::gpu
