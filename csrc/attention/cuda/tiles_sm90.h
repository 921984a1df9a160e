// The shared memory of the forward kernel of sm_90a: its tiles, and the barriers that guard them.
#pragma once

#include "attention/cuda/plan_sm90.h"
#include "gpu/gpu.h"

namespace weft::attention::cuda {

using namespace ::weft::gpu;

template <class T, class Shape>
struct Tiles {
  static constexpr uint32_t kWarpRows = 16;  // of the 64 that a warpgroup has
  using Q = MatrixTile<T, Major::k, Swizzle::bytes128, 64, Shape::kD>;  // of a warpgroup
  using K = MatrixTile<T, Major::k, Swizzle::bytes128, Shape::kKeys, Shape::kD>;
  using V = MatrixTile<T, Major::mn, Swizzle::bytes128, Shape::kDv, Shape::kKeys>;
  using O = MatrixTile<T, Major::k, Swizzle::bytes128, kWarpRows, Shape::kDv>;  // of a warp

  SharedLayout layout;
  Shared<T> q = layout.take<T>(Shape::kWarpgroups * Q::kSize, kSharedAlignment);
  Shared<T> k = layout.take<T>(Shape::kStages * K::kSize, kSharedAlignment);
  Shared<T> v = layout.take<T>(Shape::kStages * V::kSize, kSharedAlignment);
  Shared<T> o =
      Shape::kOutputInQ ? q : layout.take<T>(Shape::kQueries * Shape::kDv, kSharedAlignment);
  // Of Q one for each warpgroup, of K and V one for each stage. Each warp says that it has done
  // with a tile.
  Shared<MBarrier> q_full = layout.take<MBarrier>(Shape::kWarpgroups),
                   q_empty = layout.take<MBarrier>(Shape::kWarpgroups),
                   k_full = layout.take<MBarrier>(Shape::kStages),
                   k_empty = layout.take<MBarrier>(Shape::kStages),
                   v_full = layout.take<MBarrier>(Shape::kStages),
                   v_empty = layout.take<MBarrier>(Shape::kStages);

  WEFT_DEVICE Shared<T> queries(uint32_t warpgroup) const {
    return q.from(warpgroup * Q::kSize, Q::kSize);
  }
  WEFT_DEVICE Shared<T> keys(uint32_t stage) const { return k.from(stage * K::kSize, K::kSize); }
  WEFT_DEVICE Shared<T> values(uint32_t stage) const { return v.from(stage * V::kSize, V::kSize); }
  // Of a warp, counted over the computing warpgroups; where O lies in Q, in its warpgroup's.
  WEFT_DEVICE Shared<T> output(uint32_t warp) const {
    constexpr uint32_t kOf = Shape::kOutputInQ ? Q::kSize / 4 : O::kSize;
    return o.from(warp * kOf, O::kSize);
  }
};

}  // namespace weft::attention::cuda
