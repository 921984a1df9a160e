// What the simulator offers to those who add a word: the work of a warpgroup. For library.cpp alone.
#pragma once

#include "case.h"
#include "multimem.h"
#include "mutants.h"

namespace weft::gpu::tests {

// y[t] = Σ x, where a warpgroup's engine does the sum: for each thread it adds up the tile, as that
// thread's warp knows it, into the thread's register.
template <Mistake kMistake>
WEFT_KERNEL void group_sum_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(kWarpgroup);
  tile[thread()] = load(x + thread());
  if constexpr (kMistake != Mistake::no_fence) fence_async();
  sync_block();
  struct Arguments {
    uint32_t offset;
    float sum;
  } mine{tile.offset(), 0};
  sim::group_collective("group_sum", &mine, [](void* const* threads) {
    const sim::GroupEngine engine = sim::group_engine("group_sum");
    Arguments* all[kWarpgroup];
    for (int i = 0; i < kWarpgroup; ++i) all[i] = static_cast<Arguments*>(threads[i]);
    sim::group_add([=] {
      for (uint32_t i = 0; i < kWarpgroup; ++i)
        for (uint32_t j = 0; j < kWarpgroup; ++j)
          all[i]->sum += *static_cast<const float*>(
              engine.shared(i / kWarp, all[i]->offset + 4 * j, 4, sim::Access::read));
    });
  });
  sim::group_commit();
  if constexpr (kMistake != Mistake::no_wait) sim::group_wait(0);
  tile[thread()] = 0.0f;
  sim::group_wait(0);
  store(y + thread(), mine.sum);
}
template <Mistake kMistake>
void group_sum(const Call& call) {
  launch<group_sum_kernel<kMistake>>({.block = kWarpgroup, .shared_bytes = 512},
                                     call.inputs[0].as<float>(), call.outputs[0].as<float>());
}
const Register group_sum_case("group_sum", group_sum<Mistake::none>);
const Register group_sum_no_fence("group_sum_no_fence", group_sum<Mistake::no_fence>);
const Register group_sum_no_wait("group_sum_no_wait", group_sum<Mistake::no_wait>);

// inouts are the replicas of one multicast address.
template <class T>
void multimem(const Call& call) {
  const auto bytes = static_cast<size_t>(call.inouts[0].count) * sizeof(T);
  T* address = reinterpret_cast<T*>(uintptr_t{1} << 60);
  auto* flags = reinterpret_cast<uint32_t*>(uintptr_t{1} << 61);
  const sim::Multicast data(address, bytes, {call.inouts[0].data, call.inouts[1].data});
  const sim::Multicast counters(flags, 4, {call.inouts[2].data, call.inouts[3].data});
  launch<multimem_kernel<T>>({.block = static_cast<uint32_t>(bytes / kVectorBytes)}, address, flags,
                             call.outputs[0].as<T>());
}
const Register multimem_f32("multimem_f32", multimem<float>);
const Register multimem_bf16("multimem_bf16", multimem<bf16>);
const Register multimem_f16("multimem_f16", multimem<f16>);

// y = x + 1, through memory that is used by its own address, by a multicast one, and by its own again:
// with a fence before and after the multicast one?
template <bool kBefore, bool kAfter>
WEFT_KERNEL void aliases_kernel(const float* x, float* own, float* everyones, float* y) {
  const uint32_t i = thread() * kVecSize<float>;
  store(own + i, load<kVecSize<float>>(x + i));
  if constexpr (kBefore) fence_alias();
  auto v = multimem_load_add(everyones + i);
  for (int j = 0; j < kVecSize<float>; ++j) v[j] += 1.0f;
  multimem_store(everyones + i, v);
  if constexpr (kAfter) fence_alias();
  store(y + i, load<kVecSize<float>>(own + i));
}
template <bool kBefore, bool kAfter>
void aliases(const Call& call) {
  auto* everyones = reinterpret_cast<float*>(uintptr_t{1} << 60);
  const Array own = call.outputs[0];
  const sim::Multicast data(everyones, static_cast<size_t>(own.count) * sizeof(float), {own.data});
  launch<aliases_kernel<kBefore, kAfter>>(
      {.block = static_cast<uint32_t>(own.count / kVecSize<float>)}, call.inputs[0].as<float>(),
      own.as<float>(), everyones, call.outputs[1].as<float>());
}
const Register aliases_case("aliases", aliases<true, true>);
const Register aliases_unfenced_before("aliases_unfenced_before", aliases<false, true>);
const Register aliases_unfenced_after("aliases_unfenced_after", aliases<true, false>);

}  // namespace weft::gpu::tests
