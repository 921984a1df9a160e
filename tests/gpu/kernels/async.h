// Pipelines: copy_async in groups, bulk copies under mbarriers, clusters that write into each other.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

// y[t] = Σ_n x[n, t] over N rows of 4 · threads floats, kStages rows in flight.
template <int kStages>
WEFT_KERNEL void copy_async_kernel(const float* x, float* y, int32_t N, int32_t valid) {
  const uint32_t width = 4 * threads(), at = 4 * thread();
  SharedLayout layout;
  const Shared<float> ring = layout.take<float>(kStages * width);
  const auto stage = [&](int32_t n) { return ring.from(n % kStages * width, width); };
  const auto fetch = [&](int32_t n) {
    if (n < N)
      copy_async<4>(stage(n), at, x + n * width + at,
                    n == N - 1 ? static_cast<uint32_t>(valid) : 4);
    copy_async_commit();
  };
  for (int32_t n = 0; n < kStages - 1; ++n) fetch(n);
  Vec<float, 4> sum = Vec<float, 4>::filled(0);
  const uint32_t reversed = width - 4 - at;  // what another thread has fetched
  for (int32_t n = 0; n < N; ++n) {
    copy_async_wait<kStages - 2>();
    sync_block();
    fetch(n + kStages - 1);  // into the stage that all have read one round ago
    const Vec<float, 4> v = stage(n).template load<4>(reversed);
    for (int i = 0; i < 4; ++i) sum[i] += v[i];
  }
  copy_async_wait<0>();
  store(y + reversed, sum);
}
template <int kStages>
void copy_async_case(const Call& call) {
  constexpr uint32_t kThreads = 64;
  const auto N = static_cast<int32_t>(call.inputs[0].count / (4 * kThreads));
  launch<copy_async_kernel<kStages>>(
      {.block = kThreads, .shared_bytes = kStages * kThreads * 16, .stream = call.stream},
      call.inputs[0].as<float>(), call.outputs[0].as<float>(), N,
      static_cast<int32_t>(call.numbers[0]));
}
const Register copy_async_2("copy_async_2", copy_async_case<2>);
const Register copy_async_4("copy_async_4", copy_async_case<4>);

// The same sums; warp 0 is the producer and fetches rows, warp 1 the consumer. Full and empty stages
// are told apart by mbarriers: by what counts the copies, kBulk: bytes, otherwise copy_async_arrive.
constexpr int kRingStages = 3;
struct Ring {
  SharedLayout layout;
  Shared<float> rows = layout.take<float>(kRingStages * 128, 128);
  Shared<MBarrier> full = layout.take<MBarrier>(kRingStages);
  Shared<MBarrier> empty = layout.take<MBarrier>(kRingStages);
};

template <bool kBulk>
WEFT_KERNEL void ring_kernel(const float* x, float* y, int32_t N) {
  const Ring smem;
  if (thread() == 0) {
    for (int s = 0; s < kRingStages; ++s) {
      mbarrier_init(smem.full.from(s), kBulk ? 1 : kWarp);
      mbarrier_init(smem.empty.from(s), kWarp);
    }
    fence_mbarrier_init();
  }
  sync_block();
  int s = 0;
  uint32_t phase = 0;
  const auto next = [&] {
    if (++s == kRingStages) s = 0, phase ^= 1;
  };
  if (uniform(warp()) == 0) {
    for (int32_t n = 0; n < N; ++n, next()) {
      const Shared<float> row = smem.rows.from(s * 128, 128);
      mbarrier_wait(smem.empty.from(s), phase ^ 1);
      if constexpr (kBulk) {
        if (elect()) {
          mbarrier_arrive_expect(smem.full.from(s), row.bytes());
          bulk_load(row, x + n * 128, 128, smem.full.from(s));
        }
      } else {
        copy_async<4>(row, 4 * lane(), x + n * 128 + 4 * lane());
        copy_async_arrive(smem.full.from(s));
      }
    }
    if constexpr (!kBulk) {
      copy_async_commit();
      copy_async_wait<0>();
    }
  } else {
    float sum[4] = {};
    for (int32_t n = 0; n < N; ++n, next()) {
      mbarrier_wait(smem.full.from(s), phase);
      for (int i = 0; i < 4; ++i) sum[i] += smem.rows[s * 128 + i * kWarp + (lane() ^ 7)];
      mbarrier_arrive(smem.empty.from(s));
    }
    for (int i = 0; i < 4; ++i) store(y + i * kWarp + (lane() ^ 7), sum[i]);
  }
}
template <bool kBulk>
void ring(const Call& call) {
  launch<ring_kernel<kBulk>>(
      {.block = 2 * kWarp, .shared_bytes = Ring{}.layout.bytes(), .stream = call.stream},
      call.inputs[0].as<float>(), call.outputs[0].as<float>(),
      static_cast<int32_t>(call.inputs[0].count / 128));
}
const Register ring_bulk("ring_bulk", ring<true>);
const Register ring_copies("ring_copies", ring<false>);

// out = 2 x by way of a bulk load and a bulk store; sums += 2 x by bulk_reduce_add, those of every
// other tile. Each block moves tiles of 256 through two buffers.
template <class T>
WEFT_KERNEL void bulk_kernel(const T* x, T* out, T* sums, int32_t tiles) {
  constexpr uint32_t kTile = 256;
  SharedLayout layout;
  const Shared<T> in = layout.take<T>(kTile, 128), buffers = layout.take<T>(2 * kTile, 128);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  if (thread() == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  sync_block();
  for (int32_t n = 0; n < tiles; ++n) {
    if (thread() == 0) {
      mbarrier_arrive_expect(full, in.bytes());
      bulk_load(in, x + n * kTile, kTile, full);
      bulk_wait<1>();  // what was done two rounds ago with this buffer, and these sums
    }
    mbarrier_wait(full, n & 1);
    sync_block();
    const Shared<T> buffer = buffers.from(n % 2 * kTile, kTile);
    for (uint32_t i = thread(); i < kTile; i += threads())
      buffer[i] = convert<T>(2 * convert<float>(static_cast<T>(in[i])));
    fence_async();
    sync_block();
    if (thread() == 0) {
      bulk_store(out + n * kTile, buffer, kTile);
      bulk_reduce_add(sums + n % 2 * kTile, buffer, kTile);
      bulk_commit();
    }
  }
  if (thread() == 0) bulk_wait<0>();
}
template <class T>
void bulk(const Call& call) {
  launch<bulk_kernel<T>>(
      {.block = 64, .shared_bytes = 3 * 256 * sizeof(T) + 8, .stream = call.stream},
      call.inputs[0].as<T>(), call.outputs[0].as<T>(), call.inouts[0].as<T>(),
      static_cast<int32_t>(call.inputs[0].count / 256));
}
const Register bulk_f32("bulk_f32", bulk<float>);
const Register bulk_bf16("bulk_bf16", bulk<bf16>);
const Register bulk_f16("bulk_f16", bulk<f16>);
const Register bulk_i32("bulk_i32", bulk<int32_t>);

// y[b] = Σ over the cluster's blocks of x[b']: each sends its value to all, whose barriers count it.
WEFT_KERNEL void store_async_kernel(const float* x, float* y) {
  const uint32_t size = cluster_blocks(), rank = cluster_rank();
  SharedLayout layout;
  const Shared<float> sums = layout.take<float>(16);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  if (thread() == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_expect(full, size * sizeof(float));
    mbarrier_arrive(full);
  }
  sync_cluster();
  if (lane() < size) store_async(sums.in_block(lane()), rank, load(x + block().x), full);
  while (!mbarrier_try_wait(full, 0)) {
  }
  float sum = 0;
  for (uint32_t i = 0; i < size; ++i) sum += sums[i];
  if (thread() == 0) store(y + block().x, sum);
  sync_cluster();
  if (thread() == 0) mbarrier_invalidate(full);
}
const Register store_async_case("store_async", [](const Call& call) {
  const auto size = static_cast<uint32_t>(call.numbers[0]);
  launch<store_async_kernel>({.grid = {static_cast<uint32_t>(call.inputs[0].count)},
                              .block = kWarp,
                              .cluster = {size},
                              .shared_bytes = 128,
                              .stream = call.stream},
                             call.inputs[0].as<float>(), call.outputs[0].as<float>());
});

// Every block of a cluster gets x: block r loads the r-th part for all. Stages are given back to the
// blocks that fill them by remote arrivals. y[b] = Σ_n x[n] over rounds, for each block.
WEFT_KERNEL void multicast_kernel(const float* x, float* y, int32_t rounds) {
  const uint32_t size = cluster_blocks(), rank = cluster_rank();
  constexpr uint32_t kRow = 256;
  const uint32_t part = kRow / size;
  SharedLayout layout;
  const Shared<float> row = layout.take<float>(kRow, 128);
  const Shared<MBarrier> full = layout.take<MBarrier>(1), empty = layout.take<MBarrier>(1);
  if (thread() == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(empty, size);
    fence_mbarrier_init();
  }
  sync_cluster();
  float sum = 0;
  for (int32_t n = 0; n < rounds; ++n) {
    if (thread() == 0) {
      mbarrier_wait(empty, (n & 1) ^ 1);
      mbarrier_arrive_expect(full, row.bytes());
      bulk_load_multicast(row.from(rank * part, part), x + n * kRow + rank * part, part, full,
                          static_cast<uint16_t>((1u << size) - 1));
    }
    mbarrier_wait(full, n & 1);
    for (uint32_t i = thread(); i < kRow; i += threads()) sum += row[i];
    sync_block();
    if (thread() < size) mbarrier_arrive(empty.in_block(thread()));
  }
  sum = warp_sum(sum);
  if (thread() == 0) store(y + block().x, sum);
  sync_cluster();
}
const Register multicast("multicast", [](const Call& call) {
  const auto size = static_cast<uint32_t>(call.numbers[0]);
  launch<multicast_kernel>({.grid = {size},
                            .block = kWarp,
                            .cluster = {size},
                            .shared_bytes = 256 * 4 + 64,
                            .stream = call.stream},
                           call.inputs[0].as<float>(), call.outputs[0].as<float>(),
                           static_cast<int32_t>(call.inputs[0].count / 256));
});

// Registers go from a producer to consumers, and the block does its work.
WEFT_KERNEL_BOUNDS(384, 1) void registers_kernel(int32_t* out) {
  if (warp() < 4)
    decrease_registers<24>();
  else
    increase_registers<240>();
  store(out + thread(), static_cast<int32_t>(thread()));
}
const Register registers_case("registers", [](const Call& call) {
  launch<registers_kernel>({.block = 384, .stream = call.stream}, call.outputs[0].as<int32_t>());
});

// y = x + 2 by two kernels, the second of which may start before the first has ended.
WEFT_KERNEL void add_one_kernel(const float* x, float* y) {
  wait_for_prerequisites();
  store(y + thread(), load(x + thread()) + 1);
  allow_dependents();
}
const Register dependent("dependent", [](const Call& call) {
  launch<add_one_kernel>({.block = kWarp, .stream = call.stream}, call.inputs[0].as<float>(),
                         call.outputs[0].as<float>());
  launch<add_one_kernel>({.block = kWarp, .stream = call.stream, .dependent = true},
                         call.outputs[0].as<float>(), call.outputs[1].as<float>());
});

}  // namespace weft::gpu::tests
