#include "int8/cuda/plan_sm90.h"

#include <algorithm>

#include "core/divide.h"
#include "gpu/plan.h"

namespace weft::int8::cuda {
namespace {

using gpu::is_aligned;

constexpr int64_t kMostDepth = 1 << 16, kFewOfFloats = 16;

// Can tensor copies reach such rows?
bool is_reached(const void* data, int64_t row_bytes) {
  return is_aligned(data, 16) && row_bytes > 0 && row_bytes % 16 == 0 &&
         row_bytes < int64_t{1} << 40;
}

// Cycles that a tile's products and its end take, and who takes tiles. Of a step of K a
// multiprocessor does 4096 products a cycle; it gets some 40 bytes a cycle from L2.
struct Cost {
  int64_t cycles;
  PlanSm90 plan;
};

// Tiles so high that what a wave of blocks reads is nearly a square of the result.
constexpr uint32_t kHeight = 8;
constexpr int64_t kEndCycles = 1500, kBytesOfCycle = 40, kProductsOfCycle = 4096;
constexpr int64_t kMostSplits = 8, kLeastSteps = 4;  // of K in a split

// Blocks of clusters of that size that run at once. Multiprocessors come in parts of the GPU of 16 or
// 18, which a cluster does not leave, and pairs.
int64_t room_for(int64_t cluster, const gpu::Limits& limits) {
  const int64_t all = limits.multiprocessors;
  return cluster > 2 && all >= 16 ? all / 16 * 16 : all;
}

template <class S>
Cost cost_of(ShapeSm90 shape, const ProductSm90& p, const gpu::Limits& limits) {
  const auto count = [](int64_t n) { return static_cast<uint32_t>(n); };
  Cost c;
  c.plan.shape = shape;
  const int64_t rows = ceil_div(p.M, S::kRows * S::kPair), columns = ceil_div(p.N, S::kColumns),
                tiles = rows * columns, steps = ceil_div(p.K, S::kDepth),
                teams = std::max<int64_t>(limits.multiprocessors / S::kPair, 1);
  c.plan.raster = {count(rows), count(columns), kHeight};
  int64_t splits = 1;
  if (S::kPair == 1)
    while (2 * splits <= kMostSplits && 2 * splits * tiles <= room_for(2 * splits, limits) &&
           2 * splits * kLeastSteps <= steps)
      splits *= 2;
  c.plan.splits = count(splits);
  c.plan.grid = count(splits > 1 ? splits * tiles : std::min(tiles, teams) * S::kPair);
  const int64_t loaded = (S::kLeft + S::kRight / S::kPair) * S::kDepth;
  const int64_t step = std::max(int64_t{S::kLeft} * S::kRight * S::kDepth / kProductsOfCycle,
                                loaded / kBytesOfCycle);
  c.cycles = ceil_div(tiles * splits, splits > 1 ? tiles * splits : teams) *
             (ceil_div(steps, splits) * step + kEndCycles);
  return c;
}

}  // namespace

std::optional<PlanSm90> plan_sm90(const ProductSm90& p, const gpu::Limits& limits) {
  if (!limits.wgmma || p.K > kMostDepth || p.M < 1 || !is_reached(p.x, p.x_row) ||
      !is_reached(p.weight, p.weight_row) || ceil_div(p.M, 128) * ceil_div(p.N, 128) > INT32_MAX)
    return {};
  Cost best;
  if (p.x_dtype != DType::i8) {
    if (p.M <= kFewOfFloats) return {};
    best = p.M <= 64 ? cost_of<WeightOnlyShape<bf16, 64>>(ShapeSm90::weight_only64, p, limits)
                     : cost_of<WeightOnlyShape<bf16, 128>>(ShapeSm90::weight_only128, p, limits);
  } else if (p.M <= 16) {
    best = cost_of<Shape<ShapeSm90::few16>>(ShapeSm90::few16, p, limits);
  } else if (p.M <= 64) {
    best = cost_of<Shape<ShapeSm90::few64>>(ShapeSm90::few64, p, limits);
  } else {
    best = cost_of<Shape<ShapeSm90::square>>(ShapeSm90::square, p, limits);
    const Cost wide = cost_of<Shape<ShapeSm90::wide>>(ShapeSm90::wide, p, limits);
    if (wide.cycles <= best.cycles) best = wide;
  }
  best.plan.tensor_out = is_reached(p.out, p.N * static_cast<int64_t>(size_of(p.out_dtype)));
  return best.plan;
}

}  // namespace weft::int8::cuda
