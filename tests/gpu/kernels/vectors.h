// Loads and stores of every width and with every hint, through registers and shared memory.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// y = x, N elements at a time, through shared memory.
template <class T, int N, Cache kLoad, Cache kStore>
WEFT_KERNEL void copy_kernel(const T* x, T* y, int64_t count) {
  SharedLayout layout;
  const Shared<T> tile = layout.take<T>(threads() * N);
  const int64_t i = (int64_t{block().x} * threads() + thread()) * N;
  if (i >= count) return;
  tile.store(thread() * N, load<N, kLoad>(x + i));
  store<kStore>(y + i, tile.template load<N>(thread() * N));
}

template <class T, int N, Cache kLoad = Cache::normal, Cache kStore = Cache::normal>
void copy(const Call& call) {
  const int64_t count = call.inputs[0].count;
  constexpr uint32_t kThreads = 64;
  const auto grid = static_cast<uint32_t>(ceil_div<int64_t>(count, kThreads * N));
  launch<copy_kernel<T, N, kLoad, kStore>>({.grid = {grid},
                                            .block = kThreads,
                                            .shared_bytes = kThreads * N * sizeof(T),
                                            .stream = call.stream},
                                           call.inputs[0].as<T>(), call.outputs[0].as<T>(), count);
}

const Register copy_u8_1("copy_u8_1", copy<uint8_t, 1>);
const Register copy_i8_16("copy_i8_16", copy<int8_t, 16>);
const Register copy_bf16_1("copy_bf16_1", copy<bf16, 1>);
const Register copy_bf16_2("copy_bf16_2", copy<bf16, 2, Cache::streaming, Cache::streaming>);
const Register copy_bf16_8("copy_bf16_8", copy<bf16, 8, Cache::read_only>);
const Register copy_bf16_16("copy_bf16_16", copy<bf16, 16, Cache::read_only, Cache::streaming>);
const Register copy_f32_1("copy_f32_1", copy<float, 1, Cache::read_only>);
const Register copy_f32_4("copy_f32_4", copy<float, 4, Cache::streaming, Cache::streaming>);
const Register copy_f32_8("copy_f32_8", copy<float, 8>);
const Register copy_f64_1("copy_f64_1", copy<double, 1, Cache::streaming>);
const Register copy_f64_2("copy_f64_2", copy<double, 2>);

}  // namespace weft::gpu::tests
