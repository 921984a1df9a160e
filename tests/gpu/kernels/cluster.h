// Clusters and their shared memory.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// y[n] = Σ_c x[n, c]; a row per cluster, a slice of it per block. Each block writes its sum into the
// memory of all, then adds up what it was given: all get the same bits.
struct ClusterSumShared {
  SharedLayout layout;
  Shared<float> sums = layout.take<float>(16);  // by rank
};

WEFT_KERNEL void cluster_sum_kernel(const float* x, float* y, int64_t C) {
  const ClusterSumShared smem;
  const uint32_t rank = cluster_rank(), size = cluster_blocks();
  const int64_t row = block().x / size;
  float sum = 0;
  for (int64_t c = rank * kWarp + lane(); c < C; c += size * kWarp) sum += load(x + row * C + c);
  sum = warp_sum(sum);
  sync_cluster();  // all have begun
  if (lane() < size) smem.sums.in_block(lane()).store(rank, sum);
  sync_cluster();
  sum = 0;
  for (uint32_t i = 0; i < size; ++i) sum += smem.sums[i];
  if (lane() == 0) store(y + block().x, sum);
}
const Register cluster_sum("cluster_sum", [](const Call& call) {
  const auto size = static_cast<uint32_t>(call.numbers[0]);
  const auto grid = static_cast<uint32_t>(call.outputs[0].count);
  launch<cluster_sum_kernel>({.grid = {grid},
                              .block = kWarp,
                              .cluster = {size},
                              .shared_bytes = ClusterSumShared{}.layout.bytes(),
                              .stream = call.stream},
                             call.inputs[0].as<float>(), call.outputs[0].as<float>(),
                             call.inputs[0].count / (grid / size));
});

// Each block reads four values at once from the next one of its cluster.
WEFT_KERNEL void cluster_shift_kernel(const float* x, float* y) {
  SharedLayout layout;
  const Shared<float> tile = layout.take<float>(threads() * 4);
  const uint32_t i = (block().x * threads() + thread()) * 4, at = thread() * 4;
  tile.store(at, load<4>(x + i));
  sync_cluster();
  store(y + i, tile.in_block((cluster_rank() + 1) % cluster_blocks()).load<4>(at));
  sync_cluster();
}
const Register cluster_shift("cluster_shift", [](const Call& call) {
  const auto size = static_cast<uint32_t>(call.numbers[0]);
  const auto grid = static_cast<uint32_t>(call.inputs[0].count / (4 * kWarp));
  launch<cluster_shift_kernel>({.grid = {grid},
                                .block = kWarp,
                                .cluster = {size},
                                .shared_bytes = 4 * kWarp * sizeof(float),
                                .stream = call.stream},
                               call.inputs[0].as<float>(), call.outputs[0].as<float>());
});

}  // namespace weft::gpu::tests
