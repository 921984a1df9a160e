// Launches the kernels of backward_sm80.h for one kind of operands: each has a .cu file of its own.
#pragma once

#include "attention/cuda/backward_sm80.h"
#include "attention/cuda/launch.h"

namespace weft::attention::cuda {

template <class Op, Side kSide, HeadSizes kSizes, bool kPlain>
void launch_side(BackwardCall& call, const BackwardTiles& tiles, gpu::Stream stream) {
  using T = typename Op::X;
  const Backward& p = call.p;
  const int64_t blocks = p.B * (kSide == Side::keys ? p.K : p.H) * tiles.slabs * tiles.blocks;
  if (blocks == 0) return;
  call.tiles = tiles;
  launch<backward_kernel<Op, kSide, kSizes, kPlain>>(
      {.grid = {grid_size(blocks)},
       .block = tiles.warps * kWarp,
       .shared_bytes =
           BackwardShared<T, columns_of(kDType<T>, kSide, kSizes)>(tiles, kSide).layout.bytes(),
       .stream = stream},
      call);
}

template <class Op, HeadSizes kSizes, bool kPlain>
void launch_sides(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream) {
  launch_side<Op, Side::keys, kSizes, kPlain>(call, plan.keys, stream);
  launch_side<Op, Side::queries, kSizes, kPlain>(call, plan.queries, stream);
}

// The table of kernels, the most general last.
template <class Op>
void launch_backward_sm80(BackwardCall& call, const BackwardPlan& plan, gpu::Stream stream) {
  if constexpr (sizeof(typename Op::X) == 2) {
    if (plan.sizes == HeadSizes::small)
      return plan.plain ? launch_sides<Op, HeadSizes::small, true>(call, plan, stream)
                        : launch_sides<Op, HeadSizes::small, false>(call, plan, stream);
    if (plan.sizes == HeadSizes::medium)
      return plan.plain ? launch_sides<Op, HeadSizes::medium, true>(call, plan, stream)
                        : launch_sides<Op, HeadSizes::medium, false>(call, plan, stream);
  }
  launch_sides<Op, HeadSizes::all, false>(call, plan, stream);
}

}  // namespace weft::attention::cuda
