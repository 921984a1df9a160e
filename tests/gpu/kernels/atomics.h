// Blocks of a grid that talk through global memory.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// y = Σ x. Each block writes its part; the one that counts itself last adds them up, in order.
WEFT_KERNEL void last_block_kernel(const float* x, float* parts, uint32_t* counter, float* y) {
  SharedLayout layout;
  const Shared<uint32_t> turn = layout.take<uint32_t>(1);
  const float sum = warp_sum(load(x + block().x * kWarp + lane()));
  if (lane() == 0) {
    store(parts + block().x, sum);
    turn[0] = atomic_add<Scope::gpu, Order::acquire_release>(counter, 1u);
  }
  sync_warp();
  if (turn[0] + 1 != blocks().x) return;
  float total = 0;
  for (uint32_t i = 0; i < blocks().x; ++i) total += load(parts + i);
  if (lane() == 0) store(y, total);
}
const Register last_block("last_block", [](const Call& call) {
  const auto grid = static_cast<uint32_t>(call.inputs[0].count / kWarp);
  launch<last_block_kernel>(
      {.grid = {grid}, .block = kWarp, .shared_bytes = sizeof(uint32_t), .stream = call.stream},
      call.inputs[0].as<float>(), call.outputs[0].as<float>(), call.inouts[0].as<uint32_t>(),
      call.outputs[1].as<float>());
});

// A barrier of the whole grid, by a counter on which all blocks spin; then each reads the next
// one's value. y[b] = x[(b + 1) % blocks].
WEFT_KERNEL void grid_barrier_kernel(const float* x, float* between, uint32_t* counter, float* y) {
  store(between + block().x, load(x + block().x));
  reduce_add<Scope::gpu, Order::release>(counter, 1u);
  while (load_acquire<Scope::gpu>(counter) < blocks().x) {
  }
  store(y + block().x, load(between + (block().x + 1) % blocks().x));
}
const Register grid_barrier("grid_barrier", [](const Call& call) {
  launch<grid_barrier_kernel>(
      {.grid = {static_cast<uint32_t>(call.inputs[0].count)}, .block = 1, .stream = call.stream},
      call.inputs[0].as<float>(), call.outputs[0].as<float>(), call.inouts[0].as<uint32_t>(),
      call.outputs[1].as<float>());
});

// words: how many blocks run, and the most that ever have. A block of 120 KB fills a multiprocessor.
WEFT_KERNEL void side_by_side_kernel(uint32_t* words) {
  if (lane() == 0) atomic_max(words + 1, atomic_add(words, 1u) + 1);
  for (int i = 0; i < 8; ++i) sync_block();
  if (lane() == 0) atomic_add(words, ~0u);
}
const Register side_by_side("side_by_side", [](const Call& call) {
  launch<side_by_side_kernel>(
      {.grid = {16}, .block = kWarp, .shared_bytes = 120 << 10, .stream = call.stream},
      call.inouts[0].as<uint32_t>());
});

// Every atomic once per thread, on words of their own: add, max, min, exchange, compare-exchange.
// Floats are added to a word of the thread's: of a common one the order would decide.
WEFT_KERNEL void atomics_kernel(const int32_t* x, int32_t* words, float* sums) {
  const uint32_t i = block().x * threads() + thread();
  const int32_t v = load(x + i);
  atomic_add(words, v);
  atomic_max(words + 1, v);
  atomic_min(words + 2, v);
  atomic_exchange(words + 3, v);
  atomic_compare_exchange(words + 4, 7, v);
  reduce_add(sums + i, static_cast<float>(v));
  reduce_add(sums + i, 0.5f);
}
const Register atomics("atomics", [](const Call& call) {
  launch<atomics_kernel>({.grid = {static_cast<uint32_t>(call.inputs[0].count / 64)},
                          .block = 64,
                          .stream = call.stream},
                         call.inputs[0].as<int32_t>(), call.inouts[0].as<int32_t>(),
                         call.inouts[1].as<float>());
});

}  // namespace weft::gpu::tests
