// Wrong kernels, small and on purpose: each makes one mistake that a GPU often lets pass, and the
// simulator must name.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// Reads a row past the end of x.
WEFT_KERNEL void past_the_end_kernel(const float* x, float* y) {
  store(y + thread(), load(x + thread() + 1));
}
const Register past_the_end("past_the_end", [](const Call& call) {
  launch<past_the_end_kernel>({.block = kWarp, .stream = call.stream}, call.inputs[0].as<float>(),
                              call.outputs[0].as<float>());
});

// Writes to an input.
WEFT_KERNEL void writes_input_kernel(float* x) { store(x + thread(), 0.0f); }
const Register writes_input("writes_input", [](const Call& call) {
  launch<writes_input_kernel>({.block = kWarp, .stream = call.stream}, call.inputs[0].as<float>());
});

// Loads four floats at an address that is no multiple of 16.
WEFT_KERNEL void unaligned_kernel(const float* x, float* y) {
  store(y + 4 * thread(), load<4>(x + 4 * thread() + 1));
}
const Register unaligned("unaligned", [](const Call& call) {
  launch<unaligned_kernel>({.block = 4, .stream = call.stream}, call.inputs[0].as<float>(),
                           call.outputs[0].as<float>());
});

// Accumulates into an output that nobody has cleared.
WEFT_KERNEL void uncleared_output_kernel(const float* x, float* y) {
  store(y + thread(), load(y + thread()) + load(x + thread()));
}
const Register uncleared_output("uncleared_output", [](const Call& call) {
  launch<uncleared_output_kernel>({.block = kWarp, .stream = call.stream},
                                  call.inputs[0].as<float>(), call.outputs[0].as<float>());
});

// Half of a tile is filled, all of it is read.
WEFT_KERNEL void half_filled_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(kWarp);
  if (lane() < kWarp / 2) tile[lane()] = load(x + lane());
  sync_block();
  store<Cache::normal, float>(y + lane(), tile[lane()]);
}
const Register half_filled("half_filled", [](const Call& call) {
  launch<half_filled_kernel>(
      {.block = kWarp, .shared_bytes = kWarp * sizeof(float), .stream = call.stream},
      call.inputs[0].as<float>(), call.outputs[0].as<float>());
});

// A tile's neighbour is read: the address is in shared memory, but not in the tile.
WEFT_KERNEL void wrong_tile_kernel(float* y) {
  SharedLayout layout;
  const Shared<float> first = layout.take<float>(kWarp), second = layout.take<float>(kWarp);
  first[lane()] = 1.0f;
  second[lane()] = 2.0f;
  sync_block();
  store<Cache::normal, float>(y + lane(), first[lane() + 1]);
}
const Register wrong_tile("wrong_tile", [](const Call& call) {
  launch<wrong_tile_kernel>(
      {.block = kWarp, .shared_bytes = 2 * kWarp * sizeof(float), .stream = call.stream},
      call.outputs[0].as<float>());
});

// Half of the block waits for a barrier that the other half has left behind.
WEFT_KERNEL void divergent_barrier_kernel(float* y) {
  if (thread() < kWarp) sync_block();
  store(y + thread(), 1.0f);
}
const Register divergent_barrier("divergent_barrier", [](const Call& call) {
  launch<divergent_barrier_kernel>({.block = 2 * kWarp, .stream = call.stream},
                                   call.outputs[0].as<float>());
});

// Some lanes shuffle, the others vote.
WEFT_KERNEL void divergent_warp_kernel(float* y) {
  const float v = lane() < 8 ? shuffle(1.0f, 0) : static_cast<float>(ballot(true));
  store(y + thread(), v);
}
const Register divergent_warp("divergent_warp", [](const Call& call) {
  launch<divergent_warp_kernel>({.block = kWarp, .stream = call.stream},
                                call.outputs[0].as<float>());
});

// A flag that nobody sets.
WEFT_KERNEL void endless_wait_kernel(uint32_t* flag) {
  while (load_acquire<Scope::gpu>(flag) == 0) {
  }
}
const Register endless_wait("endless_wait", [](const Call& call) {
  launch<endless_wait_kernel>({.grid = {2}, .block = kWarp, .stream = call.stream},
                              call.inouts[0].as<uint32_t>());
});

}  // namespace weft::gpu::tests
