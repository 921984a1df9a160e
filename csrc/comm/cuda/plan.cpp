#include "comm/cuda/plan.h"

#include <algorithm>

#include "core/divide.h"

namespace weft::comm::cuda {
namespace {

constexpr int64_t kVector = 16;            // bytes
constexpr int64_t kLeast = 128 * kVector;  // of a message, that are worth another block

// The table. Up to some size a second round costs more than reading (W - 1) · n bytes; two ranks read
// as much either way. A switch adds in an order of its own and rounds once: sums, and averages whose
// division is exact and whose sum, which it hands out in the dtype, does not overflow before.
Algorithm algorithm(const Collective& c, const Topology& t, int64_t bytes) {
  if (c.kind != Kind::all_reduce || t.world <= 2) return Algorithm::one_shot;
  const bool averages = (t.world & (t.world - 1)) == 0 && c.dtype != DType::f16;
  const bool adds = c.reduction == Reduction::sum || (c.reduction == Reduction::avg && averages);
  if (t.multicast && adds && bytes > (64 << 10)) return Algorithm::multicast;
  const int64_t most = !t.nvlink ? 64 << 10 : t.world <= 4 ? 512 << 10 : 256 << 10;
  return bytes <= most ? Algorithm::one_shot : Algorithm::two_shot;
}

}  // namespace

Plan plan(const Collective& c, const Topology& t, const Budget& budget) {
  const int64_t size = static_cast<int64_t>(size_of(c.dtype));
  Plan plan;
  plan.algorithm = algorithm(c, t, c.n * size);

  // A piece is made of units: of one share for each rank where those are reduced apart.
  const bool shares = plan.algorithm != Algorithm::one_shot;
  const int64_t parts = shares || c.kind == Kind::reduce_scatter ? t.world : 1;
  int64_t unit = kVector / size, room = budget.slot_bytes / parts / kVector;
  if (c.kind == Kind::all_reduce_int8) {
    unit = c.group;
    room = std::max<int64_t>(1, (budget.slot_bytes - kVector) / (c.group + 4));
  }
  const int64_t units = std::max<int64_t>(1, ceil_div(c.n, unit * (shares ? t.world : 1)));
  const int64_t bytes = c.n * size * (c.kind == Kind::reduce_scatter ? t.world : 1);
  const int64_t blocks = std::clamp<int64_t>(bytes / kLeast, 1, budget.blocks);
  const int64_t piece = std::min(ceil_div(units, blocks), room);
  plan.blocks = static_cast<uint32_t>(std::min(blocks, ceil_div(units, piece)));
  plan.piece = piece * unit;
  const int64_t vectors = ceil_div(plan.piece * parts * size, kVector);
  plan.threads =
      static_cast<uint32_t>(std::clamp<int64_t>(round_up(vectors, 32), 32, int64_t{kMostThreads}));
  return plan;
}

}  // namespace weft::comm::cuda
