// Backward of the norm family. Formulas: norm/params.h.
//
// backward_usual, what training a plain or pre-norm network asks for: x̂ from z and its statistics,
// one dy, all in x's dtype, aligned rows of whole chunks, dx and the gradients of weight and bias.
//   A team takes a row, as in forward (forward.h), with up to 16 columns a thread. Its blocks are
//   persistent: a thread's columns are the same in each of its rows, so that the weights' gradients
//   are summed in registers over all of the block's rows. z and dy of the next row are on their way
//   while this one is finished; the weights come from L1.
//   sums      Σg and Σg·x̂ of the row
//   finish    dx = rstd · (g - mean(g) - x̂ · mean(g·x̂)) + dresidual_out; dweight += dy · x̂, …
//   Each block leaves its fp32 sums in the workspace: [groups, gradients, heads, C].
// Cost: z, dy (and dresidual_out) are read and dx is written once, in bf16 6 (8) bytes an element,
// and the groups' sums, 8 bytes a column, for as many groups as the GPU holds blocks.
//
// All else goes through two kernels. backward_rows takes a row with g and x̂ in shared memory, or
// made again tile by tile where there is no room, and writes all gradients that are rows;
// backward_columns takes a stretch of columns through a group of rows for those that are vectors
// over channels, by what backward_rows has left in the workspace: mean(g) and mean(g·x̂) of each row.
// Cost: dy and z are read twice.
//
// backward_reduce adds the groups, in order: no atomics, the same bits each time.
#pragma once

#include "norm/cuda/elements.h"
#include "norm/cuda/team.h"

namespace weft::norm::cuda {

struct BackwardCall {
  Backward p;
  Geometry g;
  Draw draw;
  int64_t tile = 0;       // columns in shared memory, where not in registers
  int64_t groups = 0;     // of rows, each with sums of its own
  float* sums = nullptr;  // [groups, gradients, heads, C]
  Two* means = nullptr;   // [N]: mean(g), mean(g·x̂)
  float alpha = 1,
        least = 0;  // magnitude below which a weight is not divided by (Apex's rule: eps)
};

// Which of the vectors over channels are asked for, and where a group keeps its sums of each.
enum Vector { kWeight, kBias, kWeight1, kBias1, kXBias, kLayerscale, kVectors };

WEFT_INLINE const Channels& vector_of(const Backward& p, int which) {
  switch (which) {
    case kWeight:
      return p.dweight;
    case kBias:
      return p.dbias;
    case kWeight1:
      return p.dweight1;
    case kBias1:
      return p.dbias1;
    case kXBias:
      return p.dx_bias;
    default:
      return p.dlayerscale;
  }
}
// How many are asked for in front of `which`.
WEFT_INLINE int slot_of(const Backward& p, int which) {
  int slot = 0;
  for (int k = 0; k < which; ++k) slot += vector_of(p, k) ? 1 : 0;
  return slot;
}
// A group's sums for one of them; absent where it is not asked for.
WEFT_DEVICE float* sums_of(const BackwardCall& call, int which, int64_t group, int64_t head) {
  const Backward& p = call.p;
  if (!vector_of(p, which)) return nullptr;
  const int64_t slots = slot_of(p, kVectors);
  return call.sums + ((group * slots + slot_of(p, which)) * p.weight.heads + head) * p.C;
}

// mean(g) and mean(g·x̂) from this thread's sums.
WEFT_DEVICE Two means_of(const BackwardCall& call, Team& team, const Cascade& g,
                         const Cascade& gx) {
  const float C = static_cast<float>(call.p.C);
  const Two total = team.reduce({{g.total(), gx.total()}}, Add{});
  return {{call.p.rms ? 0 : total[0] / C, total[1] / C}};
}

WEFT_DEVICE float gradient(float g, float x_hat, const Two& means, float rstd) {
  return fma(-x_hat, means[1], g - means[0]) * rstd;
}

// ---- the usual call

struct BackwardShared {
  SharedLayout layout;
  Shared<Two> slots;
  Shared<float> columns;

  WEFT_INLINE BackwardShared(const Geometry& g, int64_t columns_of_row)
      : slots(layout.take<Two>(g.slots() * Team::kRounds)),
        columns(layout.take<float>(static_cast<uint32_t>(columns_of_row) * g.rows)) {}
};

template <class X, int kColumns>
WEFT_KERNEL_BOUNDS(512, 1)
void backward_usual_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  constexpr int E = kVecSize<X>, kChunks = kColumns / E;
  using Chunk = Vec<float, E>;
  const Backward& p = call.p;
  const BackwardShared smem(call.g, call.tile);
  Team team(call.g, smem.slots);
  const auto begin = static_cast<uint32_t>(team.part() * call.g.span);
  const auto end = static_cast<uint32_t>(min<int64_t>(p.C, begin + call.g.span));
  const auto each_chunk = [&](const auto& f) {
    WEFT_UNROLL
    for (int v = 0; v < kChunks; ++v)
      if (const uint32_t c = begin + (static_cast<uint32_t>(v) * call.g.lanes + team.thread()) * E;
          c < end)
        f(v, c);
  };

  Chunk dweight[kChunks], dbias[kChunks];
  each_chunk([&](int v, uint32_t) { dweight[v] = dbias[v] = Chunk::filled(0); });
  const Line weight(p.weight, 0, p.C);
  const float offset = p.zero_centered ? 1.0f : 0.0f;
  const auto g_of = [&](const Chunk& dy, uint32_t c) {
    if (!weight) return dy;
    const Chunk gain = weight.load<X, E, true>(c);
    return each<E>([&](int i) { return dy[i] * (gain[i] + offset); });
  };

  struct Fetched {
    Vec<X, E> z[kChunks], dy[kChunks];
    float mean, rstd;
  };
  Fetched next;
  const auto fetch = [&](int64_t n) {
    const X* z = reinterpret_cast<const X*>(p.saved.row(n));
    const X* dy = reinterpret_cast<const X*>(p.dy.row(n));
    each_chunk([&](int v, uint32_t c) {
      next.z[v] = load<E, Cache::streaming>(z + c);
      next.dy[v] = load<E, Cache::streaming>(dy + c);
    });
    next.mean = p.rms ? 0 : load(static_cast<const float*>(p.mean.data) + n);
    next.rstd = load(static_cast<const float*>(p.rstd.data) + n);
  };

  // All teams of a block make as many rounds; one that is past the last row repeats it, and keeps
  // nothing of it. float32 leaves no registers for a second row.
  constexpr bool kAhead = sizeof(X) == 2 || kChunks * E < kHeld;
  const int64_t stride = static_cast<int64_t>(blocks().x / call.g.split) * call.g.rows;
  const auto row_of = [&](int64_t first) { return min(first + team.index(), p.N - 1); };
  int64_t first = team.row() - team.index();
  if (kAhead) fetch(row_of(first));
  for (; first < p.N; first += stride) {
    if (!kAhead) fetch(row_of(first));
    const Fetched now = next;
    if (kAhead && first + stride < p.N) fetch(row_of(first + stride));

    const auto x_hat = [&](int v) {
      const Chunk z = convert<float>(now.z[v]);
      return each<E>([&](int i) { return (z[i] - now.mean) * now.rstd; });
    };
    Cascade sum, product;
    each_chunk([&](int v, uint32_t c) {
      const Chunk x = x_hat(v), g = g_of(convert<float>(now.dy[v]), c);
      float s = 0, sx = 0;
      for (int i = 0; i < E; ++i) {
        s += g[i];
        sx = fma(g[i], x[i], sx);
      }
      sum.add(s);
      product.add(sx);
    });
    const Two means = means_of(call, team, sum, product);
    const int64_t n = first + team.index();
    if (n >= p.N) continue;

    X* dx = p.dx ? reinterpret_cast<X*>(p.dx.row(n)) : nullptr;
    const X* dresidual =
        p.dresidual_out ? reinterpret_cast<const X*>(p.dresidual_out.row(n)) : nullptr;
    each_chunk([&](int v, uint32_t c) {
      const Chunk x = x_hat(v), dy = convert<float>(now.dy[v]);
      dweight[v] = each<E>([&](int i) { return fma(dy[i], x[i], dweight[v][i]); });
      dbias[v] = each<E>([&](int i) { return dbias[v][i] + dy[i]; });
      if (!dx) return;
      const Chunk g = g_of(dy, c);
      Chunk dz = each<E>([&](int i) { return gradient(g[i], x[i], means, now.rstd); });
      if (dresidual) {
        const Chunk more = convert<float>(load<E, Cache::streaming>(dresidual + c));
        dz = each<E>([&](int i) { return dz[i] + more[i]; });
      }
      store(dx + c, convert<X>(dz));
    });
  }

  // The teams' sums of a block are added in order.
  const int64_t group = block().x / call.g.split;
  const auto leave = [&](int which, const Chunk(&mine)[kChunks]) {
    float* sums = sums_of(call, which, group, 0);
    if (!sums) return;
    if (call.g.rows == 1) {
      each_chunk([&](int v, uint32_t c) { store(sums + c, mine[v]); });
      return;
    }
    const auto C = static_cast<uint32_t>(p.C);
    sync_block();
    each_chunk([&](int v, uint32_t c) { smem.columns.store(team.index() * C + c, mine[v]); });
    sync_block();
    for (uint32_t c = thread(); c < C; c += threads()) {
      float total = 0;
      for (uint32_t r = 0; r < call.g.rows; ++r) total += smem.columns[r * C + c];
      store(sums + c, total);
    }
  };
  leave(kWeight, dweight);
  leave(kBias, dbias);
}

// ---- any call

// N elements of a row at a time.
template <class X, int N>
class Gradients {
 public:
  using Chunk = Vec<float, N>;

  WEFT_DEVICE Gradients(const BackwardCall& call, int64_t n)
      : call_(call),
        n_(n),
        dy_(call.p.dy, n),
        dy1_(call.p.dy1, n),
        dresidual_out_(call.p.dresidual_out, n),
        saved_(call.p.saved, n),
        x_(call.p.x, n),
        weight_(call.p.weight, n, call.p.C),
        bias_(call.p.bias, n, call.p.C),
        weight1_(call.p.weight1, n, call.p.C),
        x_bias_(call.p.x_bias, 0, call.p.C),
        layerscale_(call.p.layerscale, 0, call.p.C),
        mean_(read_scalar(call.p.mean, n, 0)),
        rstd_(read_scalar(call.p.rstd, n, 1)),
        rowscale_(read_scalar(call.p.rowscale, n, 1)) {}

  WEFT_DEVICE Chunk x_hat(int64_t c) const {
    Chunk v = saved_.template load<X, N>(c);
    if (!call_.p.from_output) return each<N>([&](int i) { return (v[i] - mean_) * rstd_; });
    if (bias_) {
      const Chunk bias = bias_.template load<X, N>(c);
      v = each<N>([&](int i) { return v[i] - bias[i]; });
    }
    const Chunk gain = gain_of(weight_, c);
    return each<N>([&](int i) {
      return v[i] / (gain[i] < 0 ? min(gain[i], -call_.least) : max(gain[i], call_.least));
    });
  }
  WEFT_DEVICE Chunk dy(int64_t c) const { return or_zero(dy_, c); }
  WEFT_DEVICE Chunk dy1(int64_t c) const { return or_zero(dy1_, c); }
  WEFT_DEVICE Chunk g(int64_t c) const {
    Chunk g = Chunk::filled(0);
    if (dy_) {
      const Chunk dy = dy_.template load<X, N>(c), gain = gain_of(weight_, c);
      g = each<N>([&](int i) { return dy[i] * gain[i]; });
    }
    if (dy1_) {
      const Chunk dy = dy1_.template load<X, N>(c), gain = gain_of(weight1_, c);
      g = each<N>([&](int i) { return fma(dy[i], gain[i], g[i]); });
    }
    return g;
  }
  WEFT_DEVICE Chunk dz(int64_t c, const Chunk& g, const Chunk& x_hat, const Two& means) const {
    const Chunk dz = each<N>([&](int i) { return gradient(g[i], x_hat[i], means, rstd_); });
    if (!dresidual_out_) return dz;
    const Chunk more = dresidual_out_.template load<X, N>(c);
    return each<N>([&](int i) { return dz[i] + more[i]; });
  }

  // ∂L/∂u of what dropout had left of x (stream 0) or x1 (1).
  WEFT_DEVICE Chunk dropped(int64_t c, const Chunk& dz, int stream) const {
    if (!call_.draw.on) return dz;
    const Chunk by = call_.draw.factors(call_.draw.template mask<N>(n_ * call_.p.C + c, stream));
    return each<N>([&](int i) { return dz[i] * by[i]; });
  }
  // Before layerscale …
  WEFT_DEVICE Chunk scaled(int64_t c, const Chunk& dz) const {
    const Chunk du = dropped(c, dz, 0);
    return each<N>([&](int i) { return du[i] * rowscale_; });
  }
  // … and behind it.
  WEFT_DEVICE Chunk dx(int64_t c, const Chunk& scaled) const {
    if (!layerscale_) return scaled;
    const Chunk by = layerscale_.template load<X, N>(c);
    return each<N>([&](int i) { return scaled[i] * by[i]; });
  }
  // What layerscale was multiplied with, but for rowscale and dropout.
  WEFT_DEVICE Chunk u(int64_t c) const {
    const Chunk x = x_.template load<X, N>(c);
    if (!x_bias_) return x;
    const Chunk bias = x_bias_.template load<X, N>(c);
    return each<N>([&](int i) { return x[i] + bias[i]; });
  }

 private:
  WEFT_DEVICE Chunk gain_of(const Line& weight, int64_t c) const {
    if (!weight) return Chunk::filled(1);
    const Chunk v = weight.template load<X, N>(c);
    return each<N>([&](int i) { return call_.p.zero_centered ? v[i] + 1 : v[i]; });
  }
  WEFT_DEVICE static Chunk or_zero(const Line& line, int64_t c) {
    return line ? line.template load<X, N>(c) : Chunk::filled(0);
  }

  const BackwardCall& call_;
  int64_t n_;
  Line dy_, dy1_, dresidual_out_, saved_, x_, weight_, bias_, weight1_, x_bias_, layerscale_;
  float mean_, rstd_, rowscale_;
};

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(512, 1)
void backward_rows_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  constexpr int E = kVecSize<X>, N = kVector ? E : 1;
  using Chunk = Vec<float, N>;
  const Backward& p = call.p;
  const BackwardShared smem(call.g, 2 * call.tile);
  Team team(call.g, smem.slots);
  const bool here = team.row() < p.N;
  const int64_t n = here ? team.row() : p.N - 1;
  const Gradients<X, N> row(call, n);
  const auto tile_columns = static_cast<uint32_t>(call.tile);
  const Shared<float> g_of = smem.columns.from(team.index() * 2 * tile_columns, tile_columns),
                      x_of = smem.columns.from((team.index() * 2 + 1) * tile_columns, tile_columns);
  const int64_t begin = team.part() * call.g.span, stop = min(p.C, begin + call.g.span);

  Cascade sum, product;
  for (int64_t tile = begin; tile < stop; tile += call.tile) {
    const int64_t end = here ? min(stop, tile + call.tile) : tile;
    team.sync();
    for (int64_t c = tile + team.thread() * N; c < end; c += call.g.lanes * N) {
      g_of.store(static_cast<uint32_t>(c - tile), row.g(c));
      x_of.store(static_cast<uint32_t>(c - tile), row.x_hat(c));
    }
    team.sync();
    for (int64_t c = tile + team.thread() * E; c < end; c += call.g.lanes * E) {
      const auto at = static_cast<uint32_t>(c - tile);
      const Vec<float, E> g = load_first<E>(g_of, at, end - c),
                          x = load_first<E>(x_of, at, end - c);
      float s = 0, sx = 0;
      for (int i = 0; i < E; ++i) {
        s += g[i];
        sx = fma(g[i], x[i], sx);
      }
      sum.add(s);
      product.add(sx);
    }
  }
  const Two means = means_of(call, team, sum, product);
  if (!here) return;
  if (team.first()) store(call.means + n, means);

  const bool kept = stop - begin <= call.tile;
  const Line dx(p.dx, n), dx1(p.dx1, n), dresidual(p.dresidual, n), dresidual2(p.dresidual2, n);
  for (int64_t c = begin + team.thread() * N; c < stop; c += call.g.lanes * N) {
    const auto at = static_cast<uint32_t>(c - begin);
    const Chunk dz = row.dz(c, kept ? g_of.load<N>(at) : row.g(c),
                            kept ? x_of.load<N>(at) : row.x_hat(c), means);
    if (dresidual) dresidual.store(c, each<N>([&](int i) { return dz[i] * call.alpha; }));
    if (dresidual2) dresidual2.store(c, dz);
    if (dx1) dx1.store(c, row.dropped(c, dz, 1));
    if (dx) dx.store(c, row.dx(c, row.scaled(c, dz)));
  }
}

// A warp takes 32 · N columns through the rows of a group that have the same head.
constexpr uint32_t kColumnWarps = 4;

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(kColumnWarps* kWarp, 1)
void backward_columns_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  constexpr int N = kVector ? kVecSize<X> : 1;
  using Chunk = Vec<float, N>;
  const Backward& p = call.p;
  const int64_t heads = p.weight.heads, head = block().z, group = block().y * kColumnWarps + warp(),
                c = (static_cast<int64_t>(block().x) * kWarp + lane()) * N;
  if (group >= call.groups || c >= p.C) return;
  const bool back = p.dx_bias || p.dlayerscale;
  Chunk sums[kVectors];
  WEFT_UNROLL
  for (int k = 0; k < kVectors; ++k) sums[k] = Chunk::filled(0);
  const auto add = [&](int which, const auto& f) {
    sums[which] = each<N>([&](int i) { return f(i, sums[which][i]); });
  };
  for (int64_t n = group * heads + head; n < p.N; n += call.groups * heads) {
    const Gradients<X, N> row(call, n);
    const Chunk x_hat = row.x_hat(c), dy = row.dy(c), dy1 = row.dy1(c);
    add(kWeight, [&](int i, float sum) { return fma(dy[i], x_hat[i], sum); });
    add(kBias, [&](int i, float sum) { return sum + dy[i]; });
    add(kWeight1, [&](int i, float sum) { return fma(dy1[i], x_hat[i], sum); });
    add(kBias1, [&](int i, float sum) { return sum + dy1[i]; });
    if (!back) continue;
    const Chunk scaled = row.scaled(c, row.dz(c, row.g(c), x_hat, load(call.means + n)));
    if (p.dlayerscale) {
      const Chunk u = row.u(c);
      add(kLayerscale, [&](int i, float sum) { return fma(scaled[i], u[i], sum); });
    }
    const Chunk dx = row.dx(c, scaled);
    add(kXBias, [&](int i, float sum) { return sum + dx[i]; });
  }
  WEFT_UNROLL
  for (int k = 0; k < kVectors; ++k)
    if (float* to = sums_of(call, k, group, head)) store(to + c, sums[k]);
}

// ---- the groups' sums, added up: a thread per column and eighth of the groups

constexpr uint32_t kReduceParts = 8;

struct ReduceShared {
  SharedLayout layout;
  Shared<float> parts = layout.take<float>(kReduceParts * kWarp);
};

// block().y: one of the vectors; block().z: a head of it. Those that have one for all heads add the
// heads' sums, too.
WEFT_KERNEL void backward_reduce_kernel(WEFT_GRID_CONSTANT const BackwardCall call) {
  const ReduceShared smem;
  const Backward& p = call.p;
  const int which = static_cast<int>(block().y);
  const Channels& to = vector_of(p, which);
  const int64_t head = block().z, c = static_cast<int64_t>(block().x) * kWarp + lane();
  if (!to || head >= to.heads) return;
  const int64_t heads = p.weight.heads / to.heads, parts = call.groups * heads;
  float sum = 0;
  if (c < p.C)
    for (int64_t k = warp(); k < parts; k += kReduceParts)
      sum += load(sums_of(call, which, k / heads, head + k % heads) + c);
  smem.parts[thread()] = sum;
  sync_block();
  if (warp() != 0 || c >= p.C) return;
  for (uint32_t part = 1; part < kReduceParts; ++part) sum += smem.parts[part * kWarp + lane()];
  store_as<1>(to.data, to.dtype, head * p.C + c, {{sum}});
}

}  // namespace weft::norm::cuda
