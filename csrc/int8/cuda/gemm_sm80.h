// Σ_k x[m, k] · w[n, k] of int8 for sm_80 and whatever comes after, M×N×K, and what becomes of the sums
// (finish.h).
//
// Plan. A block takes a tile of m × n sums (plan.h), over all of K or over one split of it:
//   load       128 bytes of K of both operands at a time, by cp.async into a ring of stages; units of
//              16 bytes swizzled so that the eight rows which ldmatrix reads together lie in different
//              banks. One barrier a stage says both that it is there and that the one before is free.
//   multiply   m16n8k32, both operands by ldmatrix.
//   finish     sums go through shared memory, where the stages were, so that neighbouring threads hold
//              neighbouring columns; each thread ends four at a time. Of a split, the sums themselves
//              are written, and finish_parts.h adds them up: integers, which have the same bits in any
//              order.
//
// Cost: 2 M N K operations; the large tile reads 256 bytes of L2 for each 128 · 128 products of K, 64
// products a byte, and 48 bytes of shared memory for each 16 of them. Bound by the tensor cores for large
// M, by the weight's bytes for small.
#pragma once

#include "int8/cuda/finish.h"
#include "int8/cuda/plan.h"

namespace weft::int8::cuda {

struct GemmSm80 {
  Epilogue end;
  GemmPlan plan;
  const int8_t* x = nullptr;  // [M, K] in rows of x_row bytes, which begin at multiples of 16
  int64_t x_row = 0, K = 0;
  const int8_t* weight = nullptr;  // [weight_rows, K] likewise
  int64_t weight_row = 0, weight_rows = 0;
  int32_t* parts = nullptr;  // [splits, M, N], where finish_parts.h ends the products
};

template <int kRows>
WEFT_DEVICE uint32_t swizzled_place(uint32_t row, uint32_t byte) {
  return row * static_cast<uint32_t>(kDepth) + ((byte / 16 ^ (row & 7)) * 16) + byte % 16;
}

template <GemmShape kShape>
struct GemmShared {
  static constexpr GemmTile kTile = gemm_tile(kShape);
  static constexpr int kThreads = kTile.threads();
  static constexpr uint32_t kX = kTile.m * kDepth, kW = kTile.n * kDepth,
                            kSumRow = kTile.n + 8;  // int32, so that rows begin in other banks
  static_assert(kTile.m * kSumRow * 4 <= (kX + kW) * kTile.stages);

  SharedLayout layout;
  Shared<int8_t> x = layout.take<int8_t>(kX * kTile.stages, 128);
  Shared<int8_t> w = layout.take<int8_t>(kW * kTile.stages, 128);
  Shared<int32_t> sums = Shared<int32_t>(x.offset(), kTile.m* kSumRow);
};

// 128 bytes of K from byte k on, of rows [first, first + kRows), of which `rows` are there.
template <int kRows, int kThreads>
WEFT_DEVICE void bring(Shared<int8_t> to, const int8_t* from, int64_t row_bytes, int64_t rows,
                       int64_t K, int64_t first, int64_t k) {
  static_assert(kRows * 8 % kThreads == 0);
  WEFT_UNROLL
  for (int pass = 0; pass < kRows * 8 / kThreads; ++pass) {
    const uint32_t unit = thread() + static_cast<uint32_t>(pass) * kThreads, r = unit / 8,
                   byte = unit % 8 * 16;
    const int64_t row = first + r, left = row < rows ? K - k - byte : 0;
    const auto valid = static_cast<uint32_t>(max<int64_t>(0, min<int64_t>(left, 16)));
    const int8_t* unit_at = valid ? from + row * row_bytes + k + byte : from;
    copy_async<16>(to, swizzled_place<kRows>(r, byte), unit_at, valid);
  }
}

template <GemmShape kShape>
WEFT_KERNEL_BOUNDS((GemmShared<kShape>::kThreads), 1)
void gemm_sm80_kernel(WEFT_GRID_CONSTANT const GemmSm80 call) {
  constexpr GemmTile kTile = GemmShared<kShape>::kTile;
  constexpr int kM = kTile.m, kN = kTile.n, kThreads = GemmShared<kShape>::kThreads,
                kStages = kTile.stages;
  constexpr int kTilesM = kM / kTile.warps_m / 16, kTilesN = kN / kTile.warps_n / 8;
  const GemmShared<kShape> smem;
  const Epilogue& e = call.end;

  // Blocks that run together share rows of the weight.
  uint32_t index = block().x;
  const uint32_t tile_m = index % call.plan.tiles_m;
  index /= call.plan.tiles_m;
  const uint32_t tile_n = index % call.plan.tiles_n, split = index / call.plan.tiles_n;
  const int64_t m0 = int64_t{tile_m} * kM, n0 = int64_t{tile_n} * kN;
  const int64_t k0 = split * call.plan.split_steps * kDepth,
                steps = min(call.plan.split_steps, ceil_div(call.K - k0, kDepth));

  const auto issue = [&](int64_t s) {
    if (s < steps) {
      const auto stage = static_cast<uint32_t>(s % kStages);
      const int64_t k = k0 + s * kDepth;
      bring<kM, kThreads>(smem.x.from(stage * smem.kX, smem.kX), call.x, call.x_row, e.M, call.K,
                          m0, k);
      bring<kN, kThreads>(smem.w.from(stage * smem.kW, smem.kW), call.weight, call.weight_row,
                          call.weight_rows, call.K, n0, k);
    }
    copy_async_commit();
  };
  WEFT_UNROLL
  for (int s = 0; s < kStages - 1; ++s) issue(s);

  using A = FragmentA<int8_t>;
  using B = FragmentB<int8_t>;
  const uint32_t warp_m = warp() / kTile.warps_n * (16 * kTilesM),
                 warp_n = warp() % kTile.warps_n * (8 * kTilesN);
  const Place at_a = A::named(lane()), at_b = B::named(lane());
  FragmentC<int32_t> c[kTilesM][kTilesN];
  WEFT_UNROLL
  for (int i = 0; i < kTilesM; ++i) {
    WEFT_UNROLL
    for (int j = 0; j < kTilesN; ++j) c[i][j] = FragmentC<int32_t>::filled(0);
  }

  WEFT_NO_UNROLL
  for (int64_t s = 0; s < steps; ++s) {
    copy_async_wait<kStages - 2>();
    sync_block();
    issue(s + kStages - 1);
    const auto stage = static_cast<uint32_t>(s % kStages);
    const Shared<int8_t> x = smem.x.from(stage * smem.kX, smem.kX),
                         w = smem.w.from(stage * smem.kW, smem.kW);
    WEFT_UNROLL
    for (uint32_t k = 0; k < kDepth; k += A::kColumns) {
      A a[kTilesM];
      WEFT_UNROLL
      for (int i = 0; i < kTilesM; ++i)
        a[i] = {ldmatrix<4>(x, swizzled_place<kM>(warp_m + 16 * i + at_a.row, k + at_a.column))};
      WEFT_UNROLL
      for (int j = 0; j < kTilesN; j += 2) {
        const Vec<uint32_t, 4> words =
            ldmatrix<4>(w, swizzled_place<kN>(warp_n + 8 * j + at_b.column, k + at_b.row));
        const B left = {{{words[0], words[1]}}}, right = {{{words[2], words[3]}}};
        WEFT_UNROLL
        for (int i = 0; i < kTilesM; ++i) {
          mma(c[i][j], a[i], left);
          mma(c[i][j + 1], a[i], right);
        }
      }
    }
  }
  copy_async_wait<0>();
  sync_block();

  // ---- finish
  WEFT_UNROLL
  for (int i = 0; i < kTilesM; ++i) {
    WEFT_UNROLL
    for (int j = 0; j < kTilesN; ++j) {
      WEFT_UNROLL
      for (uint32_t half = 0; half < 2; ++half) {
        const Place at = FragmentC<int32_t>::place(lane(), 2 * half);
        smem.sums.template store<2>(
            (warp_m + 16 * i + at.row) * smem.kSumRow + warp_n + 8 * j + at.column,
            {{c[i][j][2 * half], c[i][j][2 * half + 1]}});
      }
    }
  }
  sync_block();
  constexpr uint32_t kFours = kN / 4, kRowsAtOnce = kThreads / kFours;
  const uint32_t column = thread() % kFours * 4;
  const FourColumns columns(e, n0 + column);
  const Rounding rounding(e);
  WEFT_NO_UNROLL
  for (uint32_t r = thread() / kFours; r < kM; r += kRowsAtOnce) {
    const int64_t m = m0 + r;
    const Vec<int32_t, 4> sums = smem.sums.template load<4>(r * smem.kSumRow + column);
    if (call.parts) {
      if (m >= e.M) continue;
      int32_t* const to = call.parts + (split * e.M + m) * e.N + columns.n;
      if (e.N % 4 == 0 && columns.n < e.N) {
        store(to, sums);
      } else {
        WEFT_UNROLL
        for (int i = 0; i < 4; ++i)
          if (columns.n + i < e.N) store(to + i, sums[i]);
      }
    } else {
      finish_four(e, rounding, m, columns, sums);
    }
  }
}

// x of int8 whose rows do not begin at multiples of 16 bytes, in rows that do: 16 bytes a thread.
constexpr uint32_t kAlignThreads = 256;

WEFT_KERNEL_BOUNDS(kAlignThreads, 1)
void align_rows_kernel(WEFT_GRID_CONSTANT const Rows x, int64_t M, int64_t K, int64_t to_row,
                       int8_t* to) {
  const int64_t units = to_row / 16, i = static_cast<int64_t>(block().x) * kAlignThreads + thread(),
                m = i / units, k = i % units * 16;
  if (m >= M) return;
  const auto* const row = reinterpret_cast<const int8_t*>(x.row(m));
  Vec<int8_t, 16> unit = {};
  WEFT_UNROLL
  for (int j = 0; j < 16; ++j)
    if (k + j < K) unit[j] = load(row + k + j);
  store(to + m * to_row + k, unit);
}

}  // namespace weft::int8::cuda
