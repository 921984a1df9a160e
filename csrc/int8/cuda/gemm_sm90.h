// Σ_k x[m, k] · w[n, k] of int8 with Hopper's warpgroup products, M×N×K, and what becomes of the sums
// (epilogue.h).
//
// Plan. A block is persistent: it takes tiles in the order of the raster; shapes: plan_sm90.h.
//   load       One thread of the first warpgroup: tensor copies of 128 bytes of K of both operands into
//              a ring of stages, guarded by mbarriers. It runs ahead into the next tile while the others
//              finish theirs. Two blocks of a pair load half of the weight's rows each, into both.
//   multiply   Each of the two other warpgroups: 64 rows of the left operand by all of the right one,
//              four wgmma a stage from shared memory, and gives a stage back when the products of the
//              next are under way.
//   finish     wide: in registers, under the copies of the next tile's first stages; scales and bias of
//              the columns come through shared memory, where another warp of the first warpgroup has
//              put them; results by stmatrix and tensor copies, one by one where those do not reach.
//              The others: sums into shared memory, from there rows of 128 columns by warp. Where the
//              blocks of a cluster have split K, each adds up a share of the rows from all of them.
//
// Cost: 2 M N K operations, of which a multiprocessor does 8192 a cycle; a stage of `wide` takes 1024
// cycles and reads 32 KiB through L2, 32 bytes a cycle; wgmma reads 80 of the 128 bytes a cycle that
// shared memory gives. Bound by the tensor cores for large M, where the end of a tile, some 2000
// cycles, stands beside 8 K cycles of products; by the weight's bytes for M up to 64, which come from
// memory once, some 200 KiB under way in each block.
#pragma once

#include "int8/cuda/finish_registers_sm90.h"
#include "int8/cuda/finish_shared_sm90.h"

namespace weft::int8::cuda {

template <class S>
WEFT_KERNEL_BOUNDS(S::kThreads, 1)
void gemm_sm90_registers_kernel(WEFT_GRID_CONSTANT const TensorMap left,
                                WEFT_GRID_CONSTANT const TensorMap right,
                                WEFT_GRID_CONSTANT const TensorMap out,
                                WEFT_GRID_CONSTANT const GemmSm90 call) {
  if constexpr (kHasWgmma) {
    const Tiles<S> smem;
    begin(smem, left, right);
    const uint32_t role = uniform(warp());
    if (role < 4) {
      decrease_registers<S::kLoaderRegisters>();
      if (role == 0 && elect()) load_tiles(smem, left, right, call);
      if (role == 1) load_columns(smem, call);
    } else {
      increase_registers<S::kRegisters>();
      RegisterFinish<S>(smem, call, out).run();
    }
    sync_warp();
    sync_cluster();  // nobody leaves while the other may still fill its stages
  } else {
    stop();
  }
}

// Multiply: where the sums come from.
template <class S, template <class> class Multiply>
WEFT_KERNEL_BOUNDS(S::kThreads, 1)
void gemm_sm90_shared_kernel(WEFT_GRID_CONSTANT const TensorMap left,
                             WEFT_GRID_CONSTANT const TensorMap right,
                             WEFT_GRID_CONSTANT const GemmSm90 call) {
  if constexpr (kHasWgmma) {
    const Tiles<S> smem;
    begin(smem, left, right);
    const uint32_t role = uniform(warp());
    if (role < 4) {
      if (role == 0 && elect()) load_tiles(smem, left, right, call);
      sync_warp();
      if (call.splits > 1) sync_cluster(), sync_cluster();  // sums are there; they are used
    } else {
      SharedFinish<S, Multiply<S>>(smem, call).run();
    }
  } else {
    stop();
  }
}

}  // namespace weft::int8::cuda
