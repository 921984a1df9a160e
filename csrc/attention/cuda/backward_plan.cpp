#include "attention/cuda/backward_plan.h"

#include <algorithm>
#include <initializer_list>

#include "attention/cuda/attention.h"
#include "attention/cuda/backward_plan_sm90.h"
#include "core/divide.h"
#include "core/error.h"

namespace weft::attention::cuda {
namespace {

bool is_vector(const Heads& t) {
  const auto size = static_cast<int64_t>(size_of(t.dtype));
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.batch * size % 16 == 0 &&
         t.row * size % 16 == 0 && t.head * size % 16 == 0;
}
bool all_vectors(std::initializer_list<const Heads*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Heads* t) { return is_vector(*t); });
}

// Of BackwardShared: the tiles, and two floats a query.
int64_t shared_bytes(DType dtype, Side side, const BackwardTiles& tiles) {
  const auto size = static_cast<int64_t>(size_of(dtype));
  const int64_t pitches = (int64_t{tiles.columns} + tiles.columns_v) * size + 2 * 16;
  const int64_t others = int64_t{tiles.stages} * tiles.others;
  return (tiles.rows + others) * pitches + (side == Side::keys ? others : tiles.rows) * 2 * 4;
}

// As many warps as there is shared memory for, rather with two stages than with long ones.
BackwardTiles tiles_of(const Backward& p, Side side, const BackwardPlan& plan,
                       const Limits& limits) {
  const Tiling t = tiling(p.q.dtype, side, plan.sizes, plan.plain);
  BackwardTiles tiles = widest(t);
  const uint32_t most = tiles.others;
  tiles.columns = static_cast<uint32_t>(ceil_div(p.D, t.slab) * t.slab);
  tiles.columns_v = static_cast<uint32_t>(ceil_div(p.Dv, t.slab) * t.slab);
  const uint32_t columns =
      side == Side::keys ? std::max(tiles.columns, tiles.columns_v) : tiles.columns;
  tiles.slabs = columns / static_cast<uint32_t>(t.slab);
  for (; tiles.warps > 0; tiles.warps /= 2) {
    tiles.rows = 16 * static_cast<uint32_t>(t.tiles) * tiles.warps;
    for (tiles.stages = 2; tiles.stages > 0; --tiles.stages)
      for (tiles.others = most; tiles.others >= static_cast<uint32_t>(t.step); tiles.others /= 2)
        if (shared_bytes(p.q.dtype, side, tiles) <= limits.shared_bytes) {
          tiles.blocks = ceil_div(side == Side::keys ? p.T : p.S, tiles.rows);
          return tiles;
        }
  }
  fail("weft.attention_backward: head sizes of ", p.D, " and ", p.Dv, " in ", name_of(p.q.dtype),
       " need more shared memory than the ", limits.shared_bytes, " bytes that this GPU has");
}

}  // namespace

BackwardPlan plan(const Backward& p, const Limits& limits) {
  check(std::max(p.S, p.T) <= kLongest, "weft.attention_backward: a sequence of ",
        std::max(p.S, p.T), " rows is longer than the CUDA kernels count, expected at most ",
        kLongest);
  BackwardPlan plan;
  const int64_t widest = std::max(p.D, p.Dv);
  const bool half = p.q.dtype != DType::f32;
  plan.plain =
      half && widest <= 128 && p.softcap == 0 && !p.bias && !p.mask && !p.alibi && p.dropout.p == 0;
  if (half && widest <= 64)
    plan.sizes = HeadSizes::small;
  else if (half && widest <= 128)
    plan.sizes = HeadSizes::medium;
  plan.vector = all_vectors({&p.q, &p.k, &p.v, &p.dout});
  plan.vector_rows = all_vectors({&p.out, &p.dout});
  plan.vector_out = all_vectors({&p.dq, &p.dk, &p.dv});
  plan_sm90(p, limits, plan);
  const BackwardSm90& sm90 = plan.sm90;
  BackwardWorkspace& space = plan.workspace;
  if (sm90.D) {
    const int64_t rows = p.H * sm90.blocks * sm90.queries;
    space.rows = rows * 2 * 4;
    space.dq = rows * sm90.D * 4;
    space.done = (p.H * sm90.blocks + 1) * 4;
  } else {
    plan.keys = tiles_of(p, Side::keys, plan, limits);
    plan.queries = tiles_of(p, Side::queries, plan, limits);
    space.rows = p.H * (p.sequences.cu_q ? p.total_q : p.B * p.S) * 2 * 4;
  }
  if (p.dsinks) {
    plan.sinks_parts = ceil_div(p.B * p.S, kSinksRows);
    space.sinks = p.H * plan.sinks_parts * 8;
  }
  return plan;
}

int64_t workspace_bytes(const Backward& p, const Limits& limits) {
  return plan(p, limits).workspace.bytes();
}

}  // namespace weft::attention::cuda
