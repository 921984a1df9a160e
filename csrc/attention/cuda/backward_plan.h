// Who works on what in the backward of attention: pure functions of shapes and of the device.
#pragma once

#include <cstdint>

#include "attention/cuda/schedule.h"
#include "attention/params.h"
#include "gpu/device.h"

namespace weft::attention::cuda {

using gpu::Limits;

constexpr int32_t kLongest = 1 << 29;  // sequence: positions can be added without a thought

// Whose rows a block owns, and goes over the other's for: dK and dV come of keys, dQ of queries.
enum class Side : uint8_t { keys, queries };

// Head sizes as kernels are compiled for: up to 64, up to 128, and all.
enum class HeadSizes : uint8_t { small, medium, all };

// The part of the scores that a warp computes at a time is 16 · tiles of its own rows × `step` rows of
// the other side; a block accumulates `slab` columns of a gradient, and goes over all scores again for
// the next slab. Registers of a thread: each slab takes tiles · slab / 2, and there are two on the
// side of keys, one on that of queries; s and dp take tiles · step / 2 each.
struct Tiling {
  int tiles, slab, step, most_warps;
};
constexpr Tiling tiling(DType dtype, Side side, HeadSizes sizes, bool plain) {
  const bool keys = side == Side::keys;
  if (dtype == DType::f32) return {1, 64, 16, 8};  // 32 a slab, 8
  if (sizes == HeadSizes::small)
    return plain ? Tiling{2, 64, 32, 4}           // 64, 32
                 : Tiling{1, 64, 32, 8};          // 32, 16
  if (keys) return {1, 128, plain ? 32 : 16, 8};  // 64, 16 or 8
  return {plain ? 2 : 1, 128, 32, 8};             // 128, 32, or half
}

// How one of the kernels is launched: own tiles of K and V (Q and dO) and as many tiles of Q and dO
// (K and V) as there are stages lie in shared memory.
struct BackwardTiles {
  uint32_t warps = 0;
  uint32_t rows = 0;       // own
  uint32_t others = 0;     // of the other side, in a stage
  uint32_t stages = 0;     // 2: the next are on their way meanwhile
  uint32_t columns = 0;    // of a row of Q and K in shared memory: D, in whole slabs
  uint32_t columns_v = 0;  // of V and dO
  uint32_t slabs = 0;
  int64_t blocks = 0;  // of own rows of the longest sequence
};

// The widest that a kernel takes.
constexpr BackwardTiles widest(const Tiling& t) {
  BackwardTiles tiles;
  tiles.warps = static_cast<uint32_t>(t.most_warps);
  tiles.rows = 16 * static_cast<uint32_t>(t.tiles) * tiles.warps;
  tiles.others = 64;
  tiles.stages = 2;
  return tiles;
}

// How the kernel of sm_90a is launched (backward_plan_sm90.h), where it takes the call.
struct BackwardSm90 {
  int D = 0;             // that it is compiled for; 0: it does not
  bool options = false;  // all that there are, or windows alone
  Schedule schedule;     // a tile: a block of keys
  uint32_t queries = 0;  // of a block of queries
  uint32_t step = 0;     // … that are gone over at a time
  uint32_t longest = 0;  // blocks of queries of the longest sequence
  int64_t blocks = 0;    // of queries of a head, of all sequences
};

// The bytes of the workspace, in this order.
struct BackwardWorkspace {
  int64_t rows = 0;   // a shift and a δ for each row of lse, in fp32
  int64_t dq = 0;     // of sm_90's kernel: dQ in fp32 …
  int64_t sinks = 0;  // parts of the gradients of sinks, in fp64
  int64_t done = 0;   // … and its counters

  constexpr int64_t bytes() const { return rows + dq + sinks + done; }
};

constexpr int64_t kSinksRows = 4096;  // of batch and queries, that a block adds up for a sink

struct BackwardPlan {
  HeadSizes sizes = HeadSizes::all;
  bool plain = false;        // scores that have nothing but a scale and a window, in 16 bits
  bool vector = false;       // rows of q, k, v and dout are moved 16 bytes at a time
  bool vector_out = false;   // those of dq, dk and dv
  bool vector_rows = false;  // those of out and dout
  BackwardTiles keys, queries;
  BackwardSm90 sm90;
  int64_t sinks_parts = 0;  // of each sink
  BackwardWorkspace workspace;
};
BackwardPlan plan(const Backward& p, const Limits& limits);

}  // namespace weft::attention::cuda
