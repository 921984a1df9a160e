// The shared memory of the sm_90a product: the ring of stages, what the end of a tile needs, and the
// barriers that guard them.
#pragma once

#include "gpu/gpu.h"
#include "int8/cuda/plan_sm90.h"

namespace weft::int8::cuda {

using namespace ::weft::gpu;

template <class S>
struct Tiles {
  using Left = MatrixTile<int8_t, Major::k, Swizzle::bytes128, S::kLeft, S::kDepth>;
  using Element = typename S::Element;
  using Sum = typename S::Sum;
  using Right = MatrixTile<Element, Major::k, Swizzle::bytes128, S::kRight, S::kDepth>;
  // Sums in registers: for each multiplying warp, places for 16 rows of 128 bytes of the result, of
  // which tensor copies empty one while the other is filled.
  static constexpr uint32_t kWarps = 8, kPlaces = 2, kPlaceBytes = 16 * 128;
  // Sums that pass through shared memory: a row of x in each row. The rows lie so far apart that a
  // warp's stores of its registers meet no bank twice: 8 words for rows that are the left operand's,
  // 4 for those of the right one.
  static constexpr uint32_t kSumsRow = S::kColumns + (S::kSwapped ? 4 : 8);

  SharedLayout layout;
  Shared<int8_t> left = layout.take<int8_t>(S::kStages * Left::kSize, kSharedAlignment);
  Shared<Element> right = layout.take<Element>(S::kStages * Right::kSize, kSharedAlignment);
  Shared<uint8_t> out =
      layout.take<uint8_t>(S::kInRegisters ? kWarps * kPlaces * kPlaceBytes : 0, kSharedAlignment);
  Shared<Sum> sums = layout.take<Sum>(S::kInRegisters ? 0 : S::kRows * kSumsRow);
  // Of the tile's columns, which a warp brings while the products are under way.
  Shared<float> scale = layout.take<float>(S::kInRegisters ? S::kColumns : 0),
                bias = layout.take<float>(S::kInRegisters ? S::kColumns : 0);
  // The copies say that a stage is full; each multiplying warp, of both blocks of a pair, that it
  // has done with one.
  Shared<MBarrier> full = layout.take<MBarrier>(S::kStages),
                   empty = layout.take<MBarrier>(S::kStages),
                   columns_full = layout.take<MBarrier>(1),
                   columns_empty = layout.take<MBarrier>(1);

  WEFT_DEVICE Shared<int8_t> left_of(uint32_t stage) const {
    return left.from(stage * Left::kSize, Left::kSize);
  }
  WEFT_DEVICE Shared<Element> right_of(uint32_t stage) const {
    return right.from(stage * Right::kSize, Right::kSize);
  }
  WEFT_DEVICE Shared<uint8_t> places(uint32_t warp) const {
    return out.from(warp * kPlaces * kPlaceBytes, kPlaces * kPlaceBytes);
  }
  WEFT_DEVICE Shared<uint8_t> place(uint32_t warp, uint32_t i) const {
    return places(warp).from(i * kPlaceBytes, kPlaceBytes);
  }
};

}  // namespace weft::int8::cuda
