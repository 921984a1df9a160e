#include "int8/cuda/plan.h"

#include <algorithm>

#include "core/divide.h"
#include "gpu/plan.h"
#include "int8/cuda/int8.h"
#include "int8/cuda/packed.h"

namespace weft::int8::cuda {
namespace {

using gpu::is_aligned, gpu::power_of_two;

constexpr int64_t kWarp = 32, kMostTeam = 512, kTeamThreads = 128;
constexpr int64_t kExtremesBytes = 16, kExtremesWarps = 8;

bool is_vector(const Quantize& p, int64_t chunk, int64_t span) {
  return p.C % chunk == 0 && span % chunk == 0 && is_aligned(p.x, 16) && is_aligned(p.q, chunk) &&
         is_aligned(p.smoothing.shift, 16) && is_aligned(p.smoothing.smooth, 16);
}

}  // namespace

// ---- quantise

QuantizePlan plan(const Quantize& p, const Limits& limits) {
  QuantizePlan plan;
  const auto chunk = static_cast<int64_t>(16 / size_of(p.x.dtype));
  const bool by_channel = p.grid.row == 0 && p.grid.group < p.C;
  plan.span = by_channel ? p.C : p.grid.group;
  plan.vector = is_vector(p, chunk, plan.span);
  const int64_t each = plan.vector ? chunk : 1, units = ceil_div(plan.span, each);
  // A lane has several chunks before a row gets another warp.
  const int64_t lanes = units <= kWarp ? power_of_two(units)
                                       : std::min(round_up(ceil_div(units, 4), kWarp), kMostTeam);
  plan.lanes = static_cast<uint32_t>(lanes);
  plan.threads = static_cast<uint32_t>(lanes > kWarp ? lanes : kTeamThreads);
  plan.teams = plan.threads / plan.lanes;

  plan.shared = p.dynamic && p.grid.row == 0;
  plan.workspace_bytes = p.transposed ? p.N * p.C : 0;
  if (!plan.shared) return plan;
  plan.column_blocks = ceil_div(p.C, kWarp * each);
  // Two blocks for a multiprocessor, and 4 rows for a warp at least.
  plan.row_blocks = std::clamp<int64_t>(2 * int64_t{limits.multiprocessors} / plan.column_blocks, 1,
                                        std::max<int64_t>(ceil_div(p.N, 4 * kExtremesWarps), 1));
  plan.scales = p.scales;
  plan.parts = plan.scales == 1 ? plan.column_blocks * plan.row_blocks : plan.row_blocks;
  plan.found_bytes = plan.parts * plan.scales * kExtremesBytes;
  plan.workspace_bytes += plan.found_bytes;
  return plan;
}

int64_t workspace_bytes(const Quantize& p, const Limits& limits) {
  return plan(p, limits).workspace_bytes;
}

// ---- products of int8

GemmPlan plan_gemm(int64_t M, int64_t N, int64_t K, const Limits& limits) {
  constexpr int64_t kLeastSteps = 4;  // of a split, which are worth a block
  GemmPlan plan;
  const auto tiles = [&](const GemmTile& t) { return ceil_div(M, t.m) * ceil_div(N, t.n); };
  const int64_t slots = 2 * int64_t{limits.multiprocessors}, steps = ceil_div(K, kDepth);
  if (M <= gemm_tile(GemmShape::small).m)
    plan.shape = GemmShape::small;
  else if (M <= gemm_tile(GemmShape::medium).m || 2 * tiles(gemm_tile(GemmShape::large)) < slots)
    plan.shape = GemmShape::medium;
  const GemmTile tile = gemm_tile(plan.shape);
  plan.tiles_m = static_cast<uint32_t>(ceil_div(M, tile.m));
  plan.tiles_n = static_cast<uint32_t>(ceil_div(N, tile.n));

  // Where tiles do not fill the GPU, K is split, as long as the sums of the parts are few beside the
  // weight. What int32 does not hold is split so that it does: in rounds, where that makes more splits
  // than run at once, so that the workspace has no more parts than these.
  const int64_t room = std::max<int64_t>(slots / tiles(tile), 1),
                few = std::max<int64_t>(std::min(steps / kLeastSteps, K / (32 * M)), 1);
  plan.split_steps = std::min(ceil_div(steps, std::min(room, few)), kMostDepth / kDepth);
  const int64_t splits = ceil_div(steps, plan.split_steps);
  plan.rounds = ceil_div(splits, room);
  plan.splits = static_cast<uint32_t>(ceil_div(splits, plan.rounds));
  return plan;
}

// ---- weight-only

WeightOnlyPlan plan_weight_only(const Linear& p, const Limits& limits) {
  constexpr int64_t kTeamRows = 32, kWarps = 8;
  WeightOnlyPlan plan;
  plan.fragments = p.x.dtype != DType::f32 && (p.group == p.K || p.group % 32 == 0);
  if (!plan.fragments) return plan;
  plan.tokens = p.M <= 8 ? 8 : 32;
  plan.blocks_m = static_cast<uint32_t>(ceil_div(p.M, plan.tokens));
  // Shares of K where there are no rows of the weight for all warps of the GPU.
  const int64_t teams = ceil_div(p.N, kTeamRows) * plan.blocks_m,
                wanted = ceil_div(2 * kWarps * int64_t{limits.multiprocessors}, teams),
                shares = std::clamp<int64_t>(power_of_two(wanted), 1, kWarps);
  plan.warps_k = static_cast<uint32_t>(shares);
  plan.warps_n = static_cast<uint32_t>(kWarps / shares);
  plan.blocks_n = static_cast<uint32_t>(ceil_div(p.N, kTeamRows * plan.warps_n));
  return plan;
}

// ---- linear

Quantize quantization_of(const Linear& p) {
  Quantize q;
  q.N = p.M;
  q.C = p.K;
  q.x = p.x;
  q.smoothing = p.smoothing;
  q.symmetric = p.symmetric;
  q.dynamic = !p.x_scale;
  q.grid = {p.x_scale ? 0 : 1, p.K};
  q.scale = const_cast<float*>(p.x_scale);
  q.zero_point = const_cast<int32_t*>(p.x_zero_point);
  return q;
}

Quantize extremes_of(const Linear& p) {
  Quantize q;
  q.N = p.M;
  q.C = p.K;
  q.x = p.x;
  q.grid = {0, 1};
  q.scales = p.K;
  return q;
}

ProductSm90 product_of(const Linear& p, const void* x, DType x_dtype, int64_t x_row) {
  const PackedLayout layout(p.N, p.K, p.bits);
  return {p.M,   p.N,        p.K, x, x_dtype, x_row, layout.weight(p.packed), layout.row_bytes,
          p.out, p.out_dtype};
}

LinearPlan plan(const Linear& p, const Limits& limits) {
  LinearPlan plan;
  if (p.operand == Operand::wide) return plan;
  const auto take = [&](int64_t bytes) {
    const int64_t at = plan.workspace_bytes;
    plan.workspace_bytes += round_up(bytes, 128);
    return at;
  };
  const bool given = p.x.dtype == DType::i8;
  plan.rows_as_they_are = given && p.x.ndim == 1 && is_aligned(p.x, 16);
  if (plan.rows_as_they_are) {
    plan.x_row = p.M > 1 ? p.x.stride[0] : round_up(p.K, 16);
  } else {
    plan.x_row = round_up(p.K, 16);
    plan.a = take(p.M * plan.x_row);
  }
  if (!given) {
    plan.scale = take(p.M * 4);
    if (p.x_zero_point || (!p.x_scale && !p.symmetric)) plan.zero_point = take(p.M * 4);
    plan.quantize = cuda::plan(quantization_of(p), limits);
  }
  if (p.operand == Operand::outliers) {
    plan.outliers = cuda::plan(extremes_of(p), limits);
    plan.found = take(plan.outliers.workspace_bytes);
    plan.left_out = take(p.K);
    plan.columns = take(p.K * 4);
    plan.count = take(4);
  }
  // What lies in the workspace is aligned.
  ProductSm90 product =
      product_of(p, plan.rows_as_they_are ? p.x.data : nullptr, DType::i8, plan.x_row);
  if (p.operand == Operand::outliers) product.out = nullptr, product.out_dtype = DType::i32;
  plan.sm90 = plan_sm90(product, limits);
  plan.gemm = plan.sm90 ? GemmPlan{} : plan_gemm(p.M, p.N, p.K, limits);
  if (plan.gemm.splits * plan.gemm.rounds > 1 || p.operand == Operand::outliers)
    plan.parts = take(plan.gemm.splits * p.M * p.N * 4);
  if (plan.gemm.rounds > 1) plan.totals = take(p.M * p.N * 8);
  return plan;
}

int64_t workspace_bytes(const Linear& p, const Limits& limits) {
  return plan(p, limits).workspace_bytes;
}

}  // namespace weft::int8::cuda
