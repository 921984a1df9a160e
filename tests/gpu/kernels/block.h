// Barriers of a block.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// Two warps hand values back and forth through one buffer, by two named barriers: the first warp
// fills it and goes on, the second empties it. y = 2 x, a buffer of 32 at a time.
WEFT_KERNEL void hand_over_kernel(const float* x, float* y, int32_t rounds) {
  constexpr uint32_t kFull = 1, kEmpty = 2;
  SharedLayout layout;
  const Shared<float> buffer = layout.take<float>(kWarp);
  if (warp() == 0) {
    for (int r = 0; r < rounds; ++r) {
      if (r > 0) sync_named(kEmpty, 2 * kWarp);
      buffer[lane()] = 2 * load(x + r * kWarp + lane());
      arrive_named(kFull, 2 * kWarp);
    }
  } else {
    for (int r = 0; r < rounds; ++r) {
      sync_named(kFull, 2 * kWarp);
      store<Cache::normal, float>(y + r * kWarp + lane(), buffer[kWarp - 1 - lane()]);
      if (r + 1 < rounds) arrive_named(kEmpty, 2 * kWarp);
    }
  }
}
const Register hand_over("hand_over", [](const Call& call) {
  launch<hand_over_kernel>(
      {.block = 2 * kWarp, .shared_bytes = kWarp * sizeof(float), .stream = call.stream},
      call.inputs[0].as<float>(), call.outputs[0].as<float>(),
      static_cast<int32_t>(call.inputs[0].count / kWarp));
});

// Votes at the block's barrier, and a histogram by shared atomics: out [0] any, [1] all, then bins.
WEFT_KERNEL void block_votes_kernel(const int32_t* x, int32_t* out, int32_t bins) {
  SharedLayout layout;
  const Shared<int32_t> counts = layout.take<int32_t>(bins);
  const int32_t v = load(x + thread());
  for (uint32_t b = thread(); b < static_cast<uint32_t>(bins); b += threads()) counts[b] = 0;
  const bool some = sync_block_or(v == 3), every = sync_block_and(v >= 0);
  atomic_add(counts, v % bins, 1);
  sync_block();
  if (thread() == 0) store(out, some ? 1 : 0), store(out + 1, every ? 1 : 0);
  for (uint32_t b = thread(); b < static_cast<uint32_t>(bins); b += threads())
    store<Cache::normal, int32_t>(out + 2 + b, counts[b]);
}
const Register block_votes("block_votes", [](const Call& call) {
  const auto bins = static_cast<int32_t>(call.outputs[0].count - 2);
  launch<block_votes_kernel>({.block = static_cast<uint32_t>(call.inputs[0].count),
                              .shared_bytes = static_cast<uint32_t>(bins * sizeof(int32_t)),
                              .stream = call.stream},
                             call.inputs[0].as<int32_t>(), call.outputs[0].as<int32_t>(), bins);
});

}  // namespace weft::gpu::tests
