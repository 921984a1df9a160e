// Wrong kernels with matrices, a mistake each, like those of mutants.h. For library.cpp alone: of
// some of them ptxas, too, says what is wrong.
#pragma once

#include "mutants.h"
#include "wgmma.h"

namespace weft::gpu::tests {

// Rows of 24 bytes: every other one begins between two multiples of 16.
WEFT_KERNEL void misaligned_row_kernel(uint32_t* out) {
  SharedLayout layout;
  const Shared<uint16_t> tile = layout.take<uint16_t>(8 * 12);
  for (uint32_t i = lane(); i < tile.count(); i += kWarp) tile[i] = 1;
  sync_warp();
  store(out + lane(), ldmatrix<1>(tile, lane() % 8 * 12)[0]);
}
const Register misaligned_row("misaligned_row", [](const Call& call) {
  launch<misaligned_row_kernel>({.block = kWarp, .shared_bytes = 8 * 24, .stream = call.stream},
                                call.outputs[0].as<uint32_t>());
});

// Lanes name rows of matrices before the others have written them.
WEFT_KERNEL void early_ldmatrix_kernel(uint32_t* out) {
  SharedLayout layout;
  const Shared<uint16_t> tile = layout.take<uint16_t>(64);
  tile.store<2>(2 * lane(), {1, 2});
  store(out + lane(), ldmatrix<1>(tile, lane() % 8 * 8)[0]);
}
const Register early_ldmatrix("early_ldmatrix", [](const Call& call) {
  launch<early_ldmatrix_kernel>({.block = kWarp, .shared_bytes = 128, .stream = call.stream},
                                call.outputs[0].as<uint32_t>());
});

// ---- products of a warpgroup: D[64, 64] = A · B in two stages of K, [2, 64, 64] each, both along K.
// The second stage is stored where the first one was. A Slip makes one mistake.
enum class Slip {
  none,
  early_read,           // the accumulator is stored before it is waited for
  missing_wait,         // no wait in the last stage
  short_wait,           // a wait that leaves the last group pending
  touched,              // the accumulator is scaled while the products are under way
  missing_fence,        // no wgmma_fence
  late_touch,           // the accumulator is scaled between wgmma_fence and wgmma
  missing_proxy_fence,  // no fence_async behind the stores
  missing_barrier,      // no barrier behind the stores
  overwritten,          // the second stage is stored while the first is read
  other_swizzle,        // the descriptor has another swizzle than the tile
  other_direction,      // the descriptor has another direction than the tile
  other_descriptor,     // one warp has another descriptor
  left_early,           // the kernel ends with products under way
  half_group,           // a block of half a warpgroup
};

template <Slip kSlip>
WEFT_KERNEL void wgmma_stages_kernel(const bf16* a, const bf16* b, float* out) {
  using Tile = MatrixTile<bf16, Major::k, Swizzle::bytes128, 64, 64>;
  using Described =
      MatrixTile<bf16, kSlip == Slip::other_direction ? Major::mn : Major::k,
                 kSlip == Slip::other_swizzle ? Swizzle::bytes64 : Swizzle::bytes128, 64, 64>;
  SharedLayout layout;
  const Shared<bf16> x = Tile::take(layout), y = Tile::take(layout);
  WgmmaAccumulator<float, 64> d;
  for (uint32_t i = 0; i < d.kSize; ++i) d[i] = 0;
  for (uint32_t stage = 0; stage < 2; ++stage) {
    store_tile<Tile, Major::k>(x, a + stage * 4096, 64, 64);
    store_tile<Tile, Major::k>(y, b + stage * 4096, 64, 64);
    if constexpr (kSlip != Slip::missing_proxy_fence) fence_async();
    if constexpr (kSlip != Slip::missing_barrier) sync_block();
    if constexpr (kSlip != Slip::missing_fence) wgmma_fence(d);
    if constexpr (kSlip == Slip::late_touch)
      for (uint32_t i = 0; i < d.kSize; ++i) d[i] = d[i] * 0.5f + 1.0f;
    for (uint32_t k = 0; k < 64; k += 16) {
      const uint32_t row = kSlip == Slip::other_descriptor && warp() == 2 ? 8 : 0;
      wgmma(d, Described::descriptor(x, 0, k), Described::descriptor(y, row, k), true);
    }
    wgmma_commit();
    if constexpr (kSlip == Slip::overwritten) {
      if (stage == 0) continue;
    }
    if constexpr (kSlip == Slip::touched)
      for (uint32_t i = 0; i < d.kSize; ++i) d[i] = d[i] * 0.5f + 1.0f;
    if constexpr (kSlip == Slip::left_early) {
      if (stage == 1) return;
    }
    if constexpr (kSlip == Slip::short_wait) {
      wgmma_wait<1>(d);
    } else if constexpr (kSlip == Slip::missing_wait || kSlip == Slip::early_read) {
      if (stage == 0) wgmma_wait<0>(d);
    } else {
      wgmma_wait<0>(d);
    }
    sync_block();
  }
  for (uint32_t i = 0; i < d.kSize; ++i) {
    const Place at = d.place(thread(), i);
    store(out + at.row * 64 + at.column, d[i]);
  }
  if constexpr (kSlip == Slip::early_read) wgmma_wait<0>();
}
template <Slip kSlip>
void wgmma_stages(const Call& call) {
  launch<wgmma_stages_kernel<kSlip>>(
      {.block = kSlip == Slip::half_group ? kWarpgroup / 2 : kWarpgroup,
       .shared_bytes = 2 * 8192,
       .stream = call.stream},
      call.inputs[0].as<bf16>(), call.inputs[1].as<bf16>(), call.outputs[0].as<float>());
}
const Register slips[] = {
    {"wgmma_none", wgmma_stages<Slip::none>},
    {"wgmma_early_read", wgmma_stages<Slip::early_read>},
    {"wgmma_missing_wait", wgmma_stages<Slip::missing_wait>},
    {"wgmma_short_wait", wgmma_stages<Slip::short_wait>},
    {"wgmma_touched", wgmma_stages<Slip::touched>},
    {"wgmma_missing_fence", wgmma_stages<Slip::missing_fence>},
    {"wgmma_late_touch", wgmma_stages<Slip::late_touch>},
    {"wgmma_missing_proxy_fence", wgmma_stages<Slip::missing_proxy_fence>},
    {"wgmma_missing_barrier", wgmma_stages<Slip::missing_barrier>},
    {"wgmma_overwritten", wgmma_stages<Slip::overwritten>},
    {"wgmma_other_swizzle", wgmma_stages<Slip::other_swizzle>},
    {"wgmma_other_direction", wgmma_stages<Slip::other_direction>},
    {"wgmma_other_descriptor", wgmma_stages<Slip::other_descriptor>},
    {"wgmma_left_early", wgmma_stages<Slip::left_early>},
    {"wgmma_half_group", wgmma_stages<Slip::half_group>},
};

// A tile of bulk copies, the next of which arrives while the tensor cores still read the first.
template <bool kEarly>
WEFT_KERNEL void wgmma_ring_kernel(const bf16* a, float* out) {
  using Tile = MatrixTile<bf16, Major::k, Swizzle::none, 64, 64>;
  SharedLayout layout;
  const Shared<bf16> x = Tile::take(layout);
  const Shared<MBarrier> full = layout.take<MBarrier>(1), empty = layout.take<MBarrier>(1);
  if (thread() == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(empty, kWarpgroup);
    fence_mbarrier_init();
  }
  sync_block();
  if (thread() >= kWarpgroup) {  // the producer
    if (thread() > kWarpgroup) return;
    for (uint32_t stage = 0; stage < 2; ++stage) {
      if (stage > 0) mbarrier_wait(empty, 0);
      mbarrier_arrive_expect(full, x.bytes());
      bulk_load(x, a + stage * 4096, 4096, full);
    }
    return;
  }
  WgmmaAccumulator<float, 64> d;
  for (uint32_t stage = 0; stage < 2; ++stage) {
    mbarrier_wait(full, stage);
    wgmma_fence(d);
    for (uint32_t k = 0; k < 64; k += 16)
      wgmma(d, Tile::descriptor(x, 0, k), Tile::descriptor(x, 0, k), stage + k > 0);
    wgmma_commit();
    if constexpr (kEarly) mbarrier_arrive(empty);
    wgmma_wait<0>(d);
    if constexpr (!kEarly) mbarrier_arrive(empty);
  }
  for (uint32_t i = 0; i < d.kSize; ++i) store(out + i * kWarpgroup + thread(), d[i]);
}
template <bool kEarly>
void wgmma_ring(const Call& call) {
  launch<wgmma_ring_kernel<kEarly>>(
      {.block = kWarpgroup + kWarp, .shared_bytes = 8192 + 32, .stream = call.stream},
      call.inputs[0].as<bf16>(), call.outputs[0].as<float>());
}
const Register wgmma_ring_case("wgmma_ring", wgmma_ring<false>);
const Register wgmma_ring_early("wgmma_ring_early", wgmma_ring<true>);

// The right accumulator, but one that no fence has named since it was read.
WEFT_KERNEL void unfenced_reuse_kernel(const bf16* a, float* out) {
  using Tile = MatrixTile<bf16, Major::k, Swizzle::bytes128, 64, 64>;
  SharedLayout layout;
  const Shared<bf16> x = Tile::take(layout);
  store_tile<Tile, Major::k>(x, a, 64, 64);
  fence_async();
  sync_block();
  WgmmaAccumulator<float, 64> d;
  wgmma_fence(d);
  for (uint32_t n = 0; n < 2; ++n) {
    wgmma(d, Tile::descriptor(x), Tile::descriptor(x), false);
    wgmma_commit();
    wgmma_wait<0>(d);
    for (uint32_t i = 0; i < d.kSize; ++i) store(out + i * kWarpgroup + thread(), d[i]);
  }
}
const Register unfenced_reuse("unfenced_reuse", [](const Call& call) {
  launch<unfenced_reuse_kernel>({.block = kWarpgroup, .shared_bytes = 8192, .stream = call.stream},
                                call.inputs[0].as<bf16>(), call.outputs[0].as<float>());
});

}  // namespace weft::gpu::tests
