// The sm_90a product up to its sums: who takes what, tensor copies, products. Plan: gemm_sm90.h.
#pragma once

#include "int8/cuda/epilogue.h"
#include "int8/cuda/tiles_sm90.h"

namespace weft::int8::cuda {

struct GemmSm90 {
  Epilogue end;
  Raster raster;
  uint32_t steps = 0;   // of K, 128 each
  uint32_t splits = 1;  // of them, for each a block of the cluster
  bool tensor_out = false;
};

// ---- who takes what

// The first row of x and the first column of the result that are this block's, of tile i.
struct TileSm90 {
  int32_t row, column;
};
template <class S>
WEFT_DEVICE TileSm90 tile_of(const GemmSm90& call, uint32_t i) {
  const Raster::Tile t = call.raster.tile(i);
  const uint32_t row = S::kPair > 1 ? t.row * S::kPair + cluster_rank() : t.row;
  return {static_cast<int32_t>(row * S::kRows), static_cast<int32_t>(t.column * S::kColumns)};
}

// f(tile) for those of this block: a pair, or the blocks that split K, have the same.
template <class S, class F>
WEFT_DEVICE void for_tiles(const GemmSm90& call, const F& f) {
  const uint32_t team = S::kPair > 1 ? S::kPair : call.splits;
  for (uint32_t i = block().x / team; i < call.raster.tiles(); i += blocks().x / team)
    f(tile_of<S>(call, i));
}

// This block's steps of K.
struct Steps {
  uint32_t begin, end;
};
template <class S>
WEFT_DEVICE Steps steps_of(const GemmSm90& call) {
  if (S::kPair > 1 || call.splits == 1) return {0, call.steps};
  const uint32_t rank = cluster_rank();
  return {rank * call.steps / call.splits, (rank + 1) * call.steps / call.splits};
}

// ---- load

// One thread.
template <class S>
WEFT_DEVICE void load_tiles(const Tiles<S>& smem, const TensorMap& left, const TensorMap& right,
                            const GemmSm90& call) {
  using T = Tiles<S>;
  // Few rows of x stay in L2, the weight beside them is read once.
  constexpr CachePolicy kLeftPolicy = S::kSwapped ? CachePolicy::evict_first : CachePolicy::normal,
                        kRightPolicy = S::kSwapped ? CachePolicy::evict_last : CachePolicy::normal;
  constexpr uint32_t kShare = S::kRight / S::kPair;  // rows of the right operand
  const Steps steps = steps_of<S>(call);
  Turn<S::kStages> turn;
  for_tiles<S>(call, [&](const TileSm90& t) {
    const int32_t left_row = S::kSwapped ? t.column : t.row,
                  right_row = S::kSwapped ? t.row : t.column;
    for (uint32_t k = steps.begin; k < steps.end; ++k, turn.next()) {
      const Shared<MBarrier> full = smem.full.from(turn.stage);
      const auto at = static_cast<int32_t>(k * S::kDepth);
      mbarrier_wait(smem.empty.from(turn.stage), turn.parity ^ 1);
      mbarrier_arrive_expect(full, S::kStageBytes);
      tensor_load<kLeftPolicy>(smem.left_of(turn.stage), left, {at, left_row}, full);
      if constexpr (S::kPair > 1) {
        const uint32_t share = cluster_rank() * kShare;
        tensor_load_multicast<kRightPolicy>(
            smem.right_of(turn.stage).from(T::Right::index(share, 0), kShare * S::kDepth), right,
            {at, right_row + static_cast<int32_t>(share)}, full, (1 << S::kPair) - 1);
      } else {
        WEFT_UNROLL
        for (uint32_t i = 0; i < T::Right::kPanels; ++i)
          tensor_load<kRightPolicy>(
              smem.right_of(turn.stage).from(T::Right::panel(i), T::Right::kRun * S::kRight), right,
              {at + static_cast<int32_t>(i * T::Right::kRun), right_row}, full);
      }
    }
  });
}

// One warp: scale and bias of each tile's columns.
template <class S>
WEFT_DEVICE void load_columns(const Tiles<S>& smem, const GemmSm90& call) {
  uint32_t parity = 0;
  for_tiles<S>(call, [&](const TileSm90& t) {
    mbarrier_wait(smem.columns_empty, parity ^ 1);
    WEFT_UNROLL
    for (uint32_t i = 0; i < S::kColumns; i += kWarp) {
      const ColumnValues v = column_values(call.end, t.column + static_cast<int64_t>(i + lane()));
      smem.scale[i + lane()] = v.scale;
      smem.bias[i + lane()] = v.bias;
    }
    sync_warp();
    if (elect()) mbarrier_arrive(smem.columns_full);
    parity ^= 1;
  });
}

// ---- multiply

// One of the two warpgroups that multiply.
template <class S>
class Multiplier {
 protected:
  using T = Tiles<S>;
  using Sums = WgmmaAccumulator<typename S::Sum, S::kRight>;

  WEFT_DEVICE Multiplier(const T& smem, const GemmSm90& call)
      : smem_(smem), call_(call), index_(uniform(warp() / 4) - 1), steps_(steps_of<S>(call)) {}

  WEFT_DEVICE void multiply(Sums& sums) {
    uint32_t before = 0;  // the stage whose products wgmma_wait<1> covers
    wgmma_fence(sums);
    for (uint32_t k = steps_.begin; k < steps_.end; ++k, turn_.next()) {
      const uint32_t stage = turn_.stage;
      const Shared<int8_t> left = smem_.left_of(stage);
      const Shared<typename S::Element> right = smem_.right_of(stage);
      mbarrier_wait(smem_.full.from(stage), turn_.parity);
      wgmma_fence();
      WEFT_UNROLL
      for (uint32_t i = 0; i < S::kDepth; i += 32)
        wgmma(sums, T::Left::descriptor(left, 64 * index_, i), T::Right::descriptor(right, 0, i),
              k > steps_.begin || i > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (k > steps_.begin) release(before);
      before = stage;
    }
    wgmma_wait<0>(sums);
    release(before);
  }

  // This warp has done with a stage: so the blocks whose copies fill it get to know.
  WEFT_DEVICE void release(uint32_t stage) const {
    const Shared<MBarrier> empty = smem_.empty.from(stage);
    if (!elect()) return;
    if constexpr (S::kPair > 1) {
      for (uint32_t rank = 0; rank < S::kPair; ++rank) mbarrier_arrive(empty.in_block(rank));
    } else {
      mbarrier_arrive(empty);
    }
  }

  const T& smem_;
  const GemmSm90& call_;
  const uint32_t index_;  // of the warpgroup among those that multiply
  const Steps steps_;
  Turn<S::kStages> turn_;
};

// ---- begin

// Barriers, while the launch in front of this one, which quantises x, may still be under way.
template <class S, class... Maps>
WEFT_DEVICE void begin(const Tiles<S>& smem, const Maps&... maps) {
  if (thread() == 0) {
    (prefetch(maps), ...);
    for (uint32_t s = 0; s < S::kStages; ++s) {
      mbarrier_init(smem.full.from(s), 1);
      mbarrier_init(smem.empty.from(s), S::kPair * Tiles<S>::kWarps);
    }
    mbarrier_init(smem.columns_full, 1);
    mbarrier_init(smem.columns_empty, Tiles<S>::kWarps);
    fence_mbarrier_init();
  }
  if constexpr (S::kPair > 1)
    sync_cluster();
  else
    sync_block();
  wait_for_prerequisites();
}

}  // namespace weft::int8::cuda
