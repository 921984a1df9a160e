#include "norm/cuda/plan.h"

#include <algorithm>
#include <initializer_list>

#include "core/divide.h"
#include "gpu/plan.h"

namespace weft::norm::cuda {
namespace {

using gpu::is_aligned, gpu::power_of_two;

constexpr int64_t kWarp = 32, kMostThreads = 512;
constexpr uint32_t kNarrowThreads = 128;  // of a block that takes several rows
constexpr int64_t kMostSplit = 16;
constexpr int64_t kChunk = 8;               // of any dtype: spans are multiples of it
constexpr int64_t kColumnWarpsWanted = 16;  // of each multiprocessor, to keep its loads under way

// Is every access of `chunk` elements aligned?
int64_t access(DType dtype, int64_t chunk) {
  return std::min<int64_t>(16, chunk * static_cast<int64_t>(size_of(dtype)));
}
bool aligned(const Rows& rows, int64_t chunk) {
  return !rows || is_aligned(rows, access(rows.dtype, chunk));
}
bool aligned(const Channels& channels, int64_t chunk) {
  return is_aligned(channels.data, access(channels.dtype, chunk));
}

template <class Tensor>
bool has_dtype(const Tensor& t, DType dtype) {
  return !t || t.dtype == dtype;
}
template <class Tensor>
bool is_common(const Tensor& t, DType dtype) {
  return !t || t.dtype == dtype || t.dtype == DType::f32;
}

bool is_usual(const Forward& p) {
  const DType x = p.x.dtype;
  const bool adds = p.residual || p.residual_out;
  return !p.x_bias && !p.rowscale && !p.layerscale && p.dropout.p == 0 && !p.x1 && !p.residual2 &&
         !p.y1 && (!adds || p.z_dtype == x) && has_dtype(p.residual, x) &&
         has_dtype(p.residual_out, x) && has_dtype(p.y, x) && is_common(p.weight, x) &&
         is_common(p.bias, x) && is_common(p.int8.shift, x) && is_common(p.int8.smooth, x);
}

bool is_vector(const Forward& p, int64_t chunk) {
  if (p.C % chunk != 0) return false;
  for (const Rows* rows : {&p.x, &p.residual, &p.residual2, &p.x1, &p.y, &p.y1, &p.residual_out,
                           &p.mask, &p.mask1, &p.int8.q})
    if (!aligned(*rows, chunk)) return false;
  for (const Channels* channels : {&p.x_bias, &p.layerscale, &p.weight, &p.bias, &p.weight1,
                                   &p.bias1, &p.int8.shift, &p.int8.smooth})
    if (!aligned(*channels, chunk)) return false;
  return true;
}

bool is_usual(const Backward& p) {
  const DType x = p.x_dtype;
  return p.dy && !p.dy1 && !p.from_output && p.dropout.p == 0 && !p.rowscale && !p.layerscale &&
         !p.dx1 && !p.dresidual && !p.dresidual2 && !p.dweight1 && !p.dbias1 && !p.dx_bias &&
         p.weight.heads == 1 && has_dtype(p.dy, x) && has_dtype(p.saved, x) &&
         has_dtype(p.dresidual_out, x) && has_dtype(p.dx, x) && is_common(p.weight, x);
}

bool is_vector(const Backward& p, int64_t chunk) {
  if (p.C % chunk != 0) return false;
  for (const Rows* rows : {&p.dy, &p.dy1, &p.dresidual_out, &p.saved, &p.x, &p.dx, &p.dx1,
                           &p.dresidual, &p.dresidual2})
    if (!aligned(*rows, chunk)) return false;
  for (const Channels* channels : {&p.weight, &p.bias, &p.weight1, &p.x_bias, &p.layerscale})
    if (!aligned(*channels, chunk)) return false;
  return true;
}

// Columns of a row that fit into shared memory with `bytes` each: the whole span, or tiles of whole
// rounds of the team.
int64_t tile_of(const Geometry& g, int64_t chunk, int64_t bytes, const Limits& limits) {
  const int64_t slots = int64_t{g.slots()} * 2 * 8,
                room = (static_cast<int64_t>(limits.shared_bytes) - slots - 64) / bytes / g.rows,
                round = static_cast<int64_t>(g.lanes) * chunk, span = round_up(g.span, kChunk);
  return span <= room ? span : room / round * round;
}

}  // namespace

Geometry geometry(int64_t C, int most, const Limits& limits) {
  Geometry g;
  g.span = C;
  if (C <= kWarp * most) {
    g.lanes = static_cast<uint32_t>(power_of_two(ceil_div(C, C <= kWarp * kFew ? kFew : most)));
    g.threads = kNarrowThreads;
    g.rows = g.threads / g.lanes;
    return g;
  }
  if (C > kMostThreads * most && limits.clusters) {
    g.split =
        static_cast<uint32_t>(std::min(kMostSplit, power_of_two(ceil_div(C, kMostThreads * most))));
    g.span = round_up(ceil_div(C, g.split), kChunk);
  }
  g.lanes = static_cast<uint32_t>(std::min(kMostThreads, round_up(ceil_div(g.span, most), kWarp)));
  g.threads = g.lanes;
  return g;
}

ForwardPlan plan(const Forward& p, const Limits& limits) {
  const int chunk = chunk_of(p.x.dtype);
  ForwardPlan plan;
  plan.geometry = geometry(p.C, kMany, limits);
  const Geometry& g = plan.geometry;
  plan.vector = is_vector(p, chunk);
  plan.usual = plan.vector && is_usual(p) && g.span <= static_cast<int64_t>(g.lanes) * kMany;
  plan.few = g.span <= static_cast<int64_t>(g.lanes) * kFew;
  if (!plan.usual) plan.tile = tile_of(g, chunk, 4, limits);
  return plan;
}

BackwardPlan plan(const Backward& p, const Limits& limits) {
  const int chunk = chunk_of(p.x_dtype);
  const int64_t heads = p.weight.heads;
  BackwardPlan plan;
  if (p.C == 0) return plan;
  plan.geometry = geometry(p.C, kHeld, limits);
  const Geometry& g = plan.geometry;
  plan.vector = is_vector(p, chunk);
  plan.usual = plan.vector && is_usual(p) && g.span <= static_cast<int64_t>(g.lanes) * kHeld;
  plan.few = g.span <= static_cast<int64_t>(g.lanes) * kFew;

  int64_t gradients = 0;
  for (const Channels* c :
       {&p.dweight, &p.dbias, &p.dweight1, &p.dbias1, &p.dx_bias, &p.dlayerscale})
    gradients += *c ? 1 : 0;
  if (p.N > 0 && plan.usual) {
    const int64_t resident =
        std::max<int64_t>(1, limits.multiprocessors * (kMostThreads / g.threads) / g.split);
    plan.rows = true;
    plan.groups = std::min(ceil_div(p.N, g.rows), resident);
    plan.tile = g.rows > 1 ? p.C : 0;
  } else if (p.N > 0) {
    plan.columns = gradients > 0;
    plan.rows = p.dx || p.dx1 || p.dresidual || p.dresidual2 || p.dx_bias || p.dlayerscale;
    plan.tile = tile_of(g, chunk, 8, limits);
    // As many warps of columns as fill the GPU, with 16 rows at least.
    const int64_t warps = ceil_div(p.C, kWarp * (plan.vector ? chunk : 1)) * heads,
                  wanted = ceil_div(int64_t{limits.multiprocessors} * kColumnWarpsWanted, warps);
    plan.groups = std::clamp<int64_t>(ceil_div(p.N, 16 * heads), 1, std::max<int64_t>(wanted, 1));
    plan.means_bytes = round_up(p.N * 8, 16);
  }
  plan.workspace_bytes = plan.means_bytes + plan.groups * gradients * heads * p.C * 4;
  return plan;
}

}  // namespace weft::norm::cuda
