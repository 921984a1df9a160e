// Instructions that no test can run one by one, or only several GPUs: every spelling of the words that
// have many, for what nvcc and ptxas make of it (test_machine_code.py). For library.cu alone.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

template <int R>
WEFT_KERNEL void tensor_spellings_kernel(WEFT_GRID_CONSTANT const TensorMap map) {
  SharedLayout layout;
  const Shared<float> box = layout.take<float>(256, 128);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  const int32_t at[R] = {};
  tensor_load<CachePolicy::evict_last>(box, map, at, full);
  tensor_load_multicast(box, map, at, full, 3);
  tensor_store(map, at, box);
  tensor_reduce_add(map, at, box);
}
template WEFT_KERNEL void tensor_spellings_kernel<1>(WEFT_GRID_CONSTANT const TensorMap);
template WEFT_KERNEL void tensor_spellings_kernel<2>(WEFT_GRID_CONSTANT const TensorMap);
template WEFT_KERNEL void tensor_spellings_kernel<3>(WEFT_GRID_CONSTANT const TensorMap);
template WEFT_KERNEL void tensor_spellings_kernel<4>(WEFT_GRID_CONSTANT const TensorMap);
template WEFT_KERNEL void tensor_spellings_kernel<5>(WEFT_GRID_CONSTANT const TensorMap);

template <Scope kScope, class T>
WEFT_KERNEL void strong_spellings_kernel(T* p) {
  T v = load_relaxed<kScope>(p) + load_acquire<kScope>(p + 1);
  store_relaxed<kScope>(p + 2, v);
  store_release<kScope>(p + 3, v);
  fence<kScope>();
  v = atomic_add<kScope, Order::relaxed>(p + 4, v);
  v = atomic_add<kScope, Order::acquire_release>(p + 5, v);
  reduce_add<kScope, Order::release>(p + 6, v);
  v = atomic_max<kScope, Order::acquire>(p + 7, v);
  v = atomic_min<kScope>(p + 8, v);
  v = atomic_exchange<kScope>(p + 9, v);
  v = atomic_compare_exchange<kScope>(p + 10, v, T{1});
  store(p + 11, v);
}
template WEFT_KERNEL void strong_spellings_kernel<Scope::block>(uint32_t*);
template WEFT_KERNEL void strong_spellings_kernel<Scope::gpu>(uint32_t*);
template WEFT_KERNEL void strong_spellings_kernel<Scope::system>(uint32_t*);
template WEFT_KERNEL void strong_spellings_kernel<Scope::block>(uint64_t*);
template WEFT_KERNEL void strong_spellings_kernel<Scope::gpu>(uint64_t*);
template WEFT_KERNEL void strong_spellings_kernel<Scope::system>(uint64_t*);

// Of another block's memory: 4, 8 and 16 bytes.
template <int N>
WEFT_KERNEL void remote_spellings_kernel() {
  SharedLayout layout;
  const Shared<float> x = layout.take<float>(8);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  const Remote<float> there = x.in_block(1);
  Vec<float, N> v = there.load<N>(0);
  there.store(4, v);
  store_async(there, 4, v, full);
  mbarrier_arrive<Scope::cluster>(full.in_block(1));
  mbarrier_arrive(full.in_block(1));
  while (!mbarrier_try_wait<Scope::cluster>(full, 0)) {
  }
}
template WEFT_KERNEL void remote_spellings_kernel<1>();
template WEFT_KERNEL void remote_spellings_kernel<2>();
template WEFT_KERNEL void remote_spellings_kernel<4>();

WEFT_KERNEL void fence_spellings_kernel(uint32_t* sums) {
  SharedLayout layout;
  const Shared<uint32_t> x = layout.take<uint32_t>(32, 128);
  fence_alias();
  fence_async();
  fence_async_global();
  bulk_reduce_add(sums, x, 32);
  bulk_commit();
  bulk_wait_read<0>();
  bulk_wait<0>();
  cluster_arrive_relaxed();
  cluster_wait();
}

}  // namespace weft::gpu::tests
