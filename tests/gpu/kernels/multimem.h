// Multicast memory. The simulator launches it (engine.h); nvcc compiles it, for what it is made of.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// y = the sum of all replicas of `shared`, which all then hold; flags count.
template <class T>
WEFT_KERNEL void multimem_kernel(T* shared, uint32_t* flags, T* y) {
  const Vec<T, kVecSize<T>> sum = multimem_load_add(shared + thread() * kVecSize<T>);
  store(y + thread() * kVecSize<T>, sum);
  sync_block();
  multimem_store(shared + thread() * kVecSize<T>, sum);
  multimem_add<Order::relaxed>(flags, 1);
  multimem_add<Order::release>(flags, 1);
}
template WEFT_KERNEL void multimem_kernel(float*, uint32_t*, float*);
template WEFT_KERNEL void multimem_kernel(bf16*, uint32_t*, bf16*);
template WEFT_KERNEL void multimem_kernel(f16*, uint32_t*, f16*);

}  // namespace weft::gpu::tests
