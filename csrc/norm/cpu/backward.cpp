// Backward of the norm family on one ISA level (compiled once per level). Formulas: params.h.
//
// Plan, for a block of up to kBlock rows:
//   gather   Σg and Σg·x̂ of each row, from dy, the saved z (or y) and the weights: one read of each
//            from memory.
//   finish   column by column over the block's rows, which are in L2 by now: dz and what hangs on
//            it are written, and the weights' gradients of these columns are carried in registers
//            over the rows, then added to the group's fp32 sums.
// A group is a fixed share of the rows (by shape alone); reduce adds the groups' sums in order. So
// no atomics, and the same bits for any number of threads.
//
// Cost per element of bf16: 4 bytes read, 2 written, about 20 vector operations per 32 elements:
// bound by memory.

#include "norm/cpu/row.h"

namespace weft::norm::cpu::WEFT_CPU_LEVEL {
namespace {

constexpr int kBlock = 4;

// The six sums over rows that the weights' gradients need, in this order, those asked for only:
// slot k of a group begins at k · heads · padded(C).
template <class A>
struct Sums {
  A *weight = nullptr, *bias = nullptr, *weight1 = nullptr, *bias1 = nullptr, *x_bias = nullptr,
    *layerscale = nullptr;

  // The sums of the head that row n belongs to.
  Sums(const Backward& p, void* group, int64_t n) {
    const int64_t C = padded(p.C), heads = p.weight.heads, head = n % heads;
    A* next = static_cast<A*>(group);
    const Channels* wanted[] = {&p.dweight, &p.dbias,   &p.dweight1,
                                &p.dbias1,  &p.dx_bias, &p.dlayerscale};
    A** slots[] = {&weight, &bias, &weight1, &bias1, &x_bias, &layerscale};
    for (int k = 0; k < 6; ++k) {
      if (!*wanted[k]) continue;
      *slots[k] = next + head * C;
      next += heads * C;
    }
  }
};

// A sum's columns, carried in registers over a block of rows.
template <class A>
class Carried {
 public:
  WEFT_INLINE Carried(A* sum, int64_t i) : sum_(sum ? sum + i : nullptr) {
    if (sum_) value_ = load_pair(sum_);
  }
  WEFT_INLINE ~Carried() {
    if (sum_) store_pair(sum_, value_);
  }
  WEFT_INLINE explicit operator bool() const { return sum_ != nullptr; }
  WEFT_INLINE void add(Pair<A> v) { value_ = value_ + v; }

 private:
  A* sum_;
  Pair<A> value_ = {};
};

// A task's scratch holds the masks of whole rows, or of one tile where work is split by columns.
int64_t keep_columns(const Backward& p) { return by_columns(p.N, p.C) ? kTile : p.C; }

template <class X>
struct Row {
  using A = acc_t<X>;
  using L = Lanes<X>;

  Row() = default;
  // masks: the dropout masks of x and x1, drawn from column masks_from on.
  Row(const Backward& p, int64_t n, const A* masks, int64_t masks_from)
      : dy(p.dy, n),
        dy1(p.dy1, n),
        dres(p.dresidual_out, n),
        saved(p.saved, n),
        x(p.x, n),
        dx(p.dx, n, p.stream),
        dx1(p.dx1, n, p.stream),
        dresidual(p.dresidual, n, p.stream),
        dresidual2(p.dresidual2, n, p.stream),
        mean(read<A>(p.mean, n)),
        rstd(read<A>(p.rstd, n)),
        rowscale(read_scalar<A>(p.rowscale, n, 1)),
        keep(p.dropout.p != 0 ? masks : nullptr),
        keep1(masks + padded(keep_columns(p))),
        first(masks_from) {}

  template <class T>
  static T read(const PerRow& v, int64_t n) {
    return v ? static_cast<const T*>(v.data)[n] : T{0};
  }

  Input dy, dy1, dres, saved, x;
  Output dx, dx1, dresidual, dresidual2;
  A mean, rstd, rowscale;
  A mean_g = 0, mean_gx = 0;  // after gather
  const A *keep, *keep1;
  int64_t first;
  const char *next_dy = nullptr,
             *next_saved = nullptr;  // of the row that takes this one's place, to be prefetched
};

// What training a plain or pre-norm network asks for, whose loops are compiled without the branches
// that it does not take: x̂ from z, one dy, in x's dtype, weights in that or float32, dx alone (and
// dresidual_out in).
template <class X>
bool is_usual(const Backward& p) {
  return !std::is_same_v<X, double> && p.dy && !p.dy1 && !p.from_output && p.weight &&
         !p.zero_centered && p.dropout.p == 0 && !p.rowscale && !p.layerscale && !p.dx1 &&
         !p.dresidual && !p.dresidual2 && !p.dx_bias && is_own<X>(p.dy) && is_own<X>(p.saved) &&
         is_own<X>(p.dresidual_out) && p.dx && is_own<X>(p.dx) && is_common<X>(p.weight);
}

// Weights as the rows of one head see them.
template <class X>
struct Weights {
  using A = acc_t<X>;
  Input weight, bias, weight1, x_bias, layerscale;
  bool zero_centered, from_output, rms;
  A least;  // magnitude below which a weight is not divided by (Apex's rule: eps)

  Weights(const Backward& p, int64_t n)
      : weight(p.weight, n, p.C),
        bias(p.bias, n, p.C),
        weight1(p.weight1, n, p.C),
        x_bias(p.x_bias, 0, p.C),
        layerscale(p.layerscale, 0, p.C),
        zero_centered(p.zero_centered),
        from_output(p.from_output),
        rms(p.rms),
        least(p.eps > 0 ? static_cast<A>(p.eps) : A{1e-30f}) {}

  template <bool kCommon, class Part>
  WEFT_INLINE Pair<A> gain(const Input& w, int64_t i, Part part) const {
    if (!kCommon && !w) return both<A>(1);
    const Pair<A> v = load<X, kCommon>(w, i, part);
    return !kCommon && zero_centered ? v + both<A>(1) : v;
  }

  template <bool kCommon, class Part>
  WEFT_INLINE Pair<A> normal(const Row<X>& row, Pair<A> w, int64_t i, Part part) const {
    if constexpr (kCommon) {  // RMSNorm's mean is 0
      return (Lanes<X>::load(reinterpret_cast<const X*>(row.saved.data) + i, part) -
              both<A>(row.mean)) *
             both<A>(row.rstd);
    }
    Pair<A> v = load<X>(row.saved, i, part);
    if (from_output) {
      if (bias) v = v - load<X>(bias, i, part);
      return v / Pair<A>{away_from_zero(w.lo), away_from_zero(w.hi)};
    }
    if (!rms) v = v - both<A>(row.mean);
    return v * both<A>(row.rstd);
  }

 private:
  WEFT_INLINE Vec<A> away_from_zero(Vec<A> w) const {
    const Vec<A> bound = broadcast<A>(least);
    return w < 0 ? vmin(w, -bound) : vmax(w, bound);
  }
};

// Σg and Σg·x̂ over columns [begin, end) of a row.
template <class X, bool kCommon>
[[gnu::noinline]] void gather(const Weights<X> weights, const Row<X> row, int64_t begin,
                              int64_t end, double* g_sum, double* gx_sum) {
  using A = acc_t<X>;
  Sum<X> sums;
  sums.over(begin, end, [&](Two<A>& sum, int64_t i, auto part) {
    const Pair<A> w = weights.template gain<kCommon>(weights.weight, i, part);
    const Pair<A> x_hat = weights.template normal<kCommon>(row, w, i, part);
    Pair<A> g = both<A>(0);
    if (kCommon) {
      g = Lanes<X>::load(reinterpret_cast<const X*>(row.dy.data) + i, part) * w;
    } else {
      if (row.dy) g = load<X>(row.dy, i, part) * w;
      if (row.dy1)
        g = g + load<X>(row.dy1, i, part) * weights.template gain<false>(weights.weight1, i, part);
    }
    sum.add(g, g * x_hat);
  });
  *g_sum = sums.first();
  *gx_sum = sums.second();
}

template <class X>
void set_means(const Backward& p, Row<X>& row, double g_sum, double gx_sum) {
  using A = acc_t<X>;
  const double C = static_cast<double>(p.C);
  row.mean_g = p.rms ? A{0} : static_cast<A>(g_sum / C);
  row.mean_gx = static_cast<A>(gx_sum / C);
}

// finish() for the usual call and kRows rows: a row's constants stay in registers while the columns
// go by.
template <class X, int kRows>
[[gnu::noinline]] void finish_usual(const Weights<X> weights, const Row<X>* rows, int64_t begin,
                                    int64_t end, Sums<acc_t<X>> sums) {
  using A = acc_t<X>;
  using L = Lanes<X>;
  const X *saved[kRows], *dy_row[kRows], *dres[kRows];
  const char *next_saved[kRows], *next_dy[kRows];
  Output dx[kRows];
  Vec<A> mean[kRows], rstd[kRows], mean_g[kRows], mean_gx[kRows];
  for (int r = 0; r < kRows; ++r) {
    const Row<X>& row = rows[r];
    saved[r] = reinterpret_cast<const X*>(row.saved.data);
    dy_row[r] = reinterpret_cast<const X*>(row.dy.data);
    dres[r] = reinterpret_cast<const X*>(row.dres.data);
    next_saved[r] = row.next_saved;
    next_dy[r] = row.next_dy;
    dx[r] = row.dx;
    mean[r] = broadcast<A>(row.mean);
    rstd[r] = broadcast<A>(row.rstd);
    mean_g[r] = broadcast<A>(row.mean_g);
    mean_gx[r] = broadcast<A>(row.mean_gx);
  }
  for_pairs<X>(begin, end, [&](int64_t i, auto part) {
    const Pair<A> w = weights.template gain<true>(weights.weight, i, part);
    Carried<A> dweight(sums.weight, i), dbias(sums.bias, i);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      if (next_dy[r]) {  // the block to come, so that memory is not idle while this one is in the
                         // caches
        __builtin_prefetch(next_dy[r] + i * static_cast<int64_t>(sizeof(X)));
        __builtin_prefetch(next_saved[r] + i * static_cast<int64_t>(sizeof(X)));
      }
      const Pair<A> z = L::load(saved[r] + i, part), dy = L::load(dy_row[r] + i, part);
      const Pair<A> x_hat = {(z.lo - mean[r]) * rstd[r], (z.hi - mean[r]) * rstd[r]};
      dweight.add(dy * x_hat);
      dbias.add(dy);
      const auto gradient = [&](Vec<A> d, Vec<A> gain, Vec<A> x) {
        return (d * gain - mean_g[r] - x * mean_gx[r]) * rstd[r];
      };
      Pair<A> dz = {gradient(dy.lo, w.lo, x_hat.lo), gradient(dy.hi, w.hi, x_hat.hi)};
      if (dres[r]) dz = dz + L::load(dres[r] + i, part);
      store<X, true>(dx[r], i, dz, part);
    }
  });
}

template <class X>
[[gnu::noinline]] void finish(const Backward& p, const Weights<X>& weights, const Row<X>* rows,
                              int count, int64_t begin, int64_t end, Sums<acc_t<X>> sums) {
  using A = acc_t<X>;
  using L = Lanes<X>;
  const Pair<A> alpha = both<A>(static_cast<A>(p.residual_alpha));
  if (is_usual<X>(p)) {
    if (count == kBlock) return finish_usual<X, kBlock>(weights, rows, begin, end, sums);
    for (int r = 0; r < count; ++r) finish_usual<X, 1>(weights, rows + r, begin, end, sums);
    return;
  }
  for_pairs<X>(begin, end, [&](int64_t i, auto part) {
    const Pair<A> w = weights.template gain<false>(weights.weight, i, part);
    const Pair<A> w1 = weights.template gain<false>(weights.weight1, i, part);
    const Pair<A> scale = weights.layerscale ? load<X>(weights.layerscale, i, part) : both<A>(1);
    Carried<A> dweight(sums.weight, i), dbias(sums.bias, i), dweight1(sums.weight1, i),
        dbias1(sums.bias1, i);
    Carried<A> dx_bias(sums.x_bias, i), dlayerscale(sums.layerscale, i);

    for (int r = 0; r < count; ++r) {
      const Row<X>& row = rows[r];
      const Pair<A> x_hat = weights.template normal<false>(row, w, i, part);
      Pair<A> g = both<A>(0);
      if (row.dy) {
        const Pair<A> dy = load<X>(row.dy, i, part);
        g = dy * w;
        if (dweight) dweight.add(dy * x_hat);
        if (dbias) dbias.add(dy);
      }
      if (row.dy1) {
        const Pair<A> dy1 = load<X>(row.dy1, i, part);
        g = g + dy1 * w1;
        if (dweight1) dweight1.add(dy1 * x_hat);
        if (dbias1) dbias1.add(dy1);
      }
      Pair<A> dz = (g - both<A>(row.mean_g) - x_hat * both<A>(row.mean_gx)) * both<A>(row.rstd);
      if (row.dres) dz = dz + load<X>(row.dres, i, part);

      if (row.dresidual) store<X>(row.dresidual, i, dz * alpha, part);
      if (row.dresidual2) store<X>(row.dresidual2, i, dz, part);
      if (row.dx1)
        store<X>(row.dx1, i, row.keep ? dz * L::load(row.keep1 + (i - row.first), part) : dz, part);
      if (row.keep) dz = dz * L::load(row.keep + (i - row.first), part);
      dz = dz * both<A>(row.rowscale);
      if (dlayerscale) {
        Pair<A> u = load<X>(row.x, i, part);
        if (weights.x_bias) u = u + load<X>(weights.x_bias, i, part);
        dlayerscale.add(dz * u);
      }
      dz = dz * scale;
      if (dx_bias) dx_bias.add(dz);
      if (row.dx) store<X>(row.dx, i, dz, part);
    }
  });
}

template <class X>
void draw(const Backward& p, int64_t n, int64_t begin, int64_t end, acc_t<X>* keep) {
  if (p.dropout.p == 0) return;
  for (int stream = 0; stream < 2; ++stream)
    draw_dropout<acc_t<X>>(p.dropout, n * p.C + begin, end - begin, stream,
                           keep + stream * padded(keep_columns(p)), nullptr);
}

// Rows that may share a pass over the columns: those of one head, with one mask in the scratch.
int64_t block_rows(const Backward& p) {
  return p.dropout.p != 0 || p.weight.heads > 1 ? 1 : kBlock;
}

template <class X>
void rows(const Backward& p, int64_t begin, int64_t end, void* group, void* scratch) {
  using A = acc_t<X>;
  A* keep = static_cast<A*>(scratch);
  const int64_t step = block_rows(p);
  const bool common = is_usual<X>(p);
  for (int64_t n = begin; n < end; n += step) {
    const int count = static_cast<int>(n + step < end ? step : end - n);
    const Weights<X> weights(p, n);
    Row<X> block[kBlock];
    for (int r = 0; r < count; ++r) {
      draw<X>(p, n + r, 0, p.C, keep);
      block[r] = Row<X>(p, n + r, keep, 0);
      double g, gx;
      common ? gather<X, true>(weights, block[r], 0, p.C, &g, &gx)
             : gather<X, false>(weights, block[r], 0, p.C, &g, &gx);
      set_means(p, block[r], g, gx);
      if (common && n + step + r < end) {
        block[r].next_dy = p.dy.row(n + step + r);
        block[r].next_saved = p.saved.row(n + step + r);
      }
    }
    finish<X>(p, weights, block, count, 0, p.C, Sums<A>(p, group, n));
  }
  if (p.stream) stream_fence();
}

// g, gx: [N], the totals over all tiles of each row.
template <class X>
void columns(const Backward& p, int64_t begin, int64_t end, const double* g, const double* gx,
             void* group, void* scratch) {
  using A = acc_t<X>;
  A* keep = static_cast<A*>(scratch);
  const int64_t step = block_rows(p);
  for (int64_t n = 0; n < p.N; n += step) {
    const int count = static_cast<int>(n + step < p.N ? step : p.N - n);
    Row<X> block[kBlock];
    for (int r = 0; r < count; ++r) {
      draw<X>(p, n + r, begin, end, keep);
      block[r] = Row<X>(p, n + r, keep, begin);
      set_means(p, block[r], g[n + r], gx[n + r]);
    }
    finish<X>(p, Weights<X>(p, n), block, count, begin, end, Sums<A>(p, group, n));
  }
  if (p.stream) stream_fence();
}

template <class X>
void reduce_groups(const Backward& p, int64_t groups, int64_t begin, int64_t end,
                   const void* sums) {
  using A = acc_t<X>;
  const Channels* gradients[] = {&p.dweight, &p.dbias,   &p.dweight1,
                                 &p.dbias1,  &p.dx_bias, &p.dlayerscale};
  const int64_t heads = p.weight.heads, C = padded(p.C);
  int64_t slots = 0, slot = 0;
  for (const Channels* gradient : gradients) slots += *gradient ? 1 : 0;
  for (const Channels* gradient : gradients) {
    if (!*gradient) continue;
    for (int64_t head = 0; head < gradient->heads; ++head) {
      const A* first = static_cast<const A*>(sums) + (slot * heads + head) * C;
      Output out;
      out.data = static_cast<char*>(gradient->data) +
                 head * p.C * static_cast<int64_t>(size_of(gradient->dtype));
      out.dtype = gradient->dtype;
      for_pairs<X>(begin, end, [&](int64_t i, auto part) {
        Pair<A> total = load_pair(first + i);
        for (int64_t group = 1; group < groups; ++group)
          total = total + load_pair(first + group * slots * heads * C + i);
        store<X>(out, i, total, part);
      });
    }
    ++slot;
  }
}

}  // namespace

void backward_rows(const Backward& p, int64_t begin, int64_t end, void* group, void* scratch) {
  with_float_type(p.x_dtype, [&](auto x) { rows<decltype(x)>(p, begin, end, group, scratch); });
}
void backward_gather(const Backward& p, int64_t n, int64_t begin, int64_t end, double* g,
                     double* gx) {
  with_float_type(p.x_dtype, [&](auto x) {
    using X = decltype(x);
    gather<X, false>(Weights<X>(p, n), Row<X>(p, n, nullptr, 0), begin, end, g, gx);
  });
}
void backward_finish(const Backward& p, int64_t begin, int64_t end, const double* g,
                     const double* gx, void* group, void* scratch) {
  with_float_type(p.x_dtype,
                  [&](auto x) { columns<decltype(x)>(p, begin, end, g, gx, group, scratch); });
}
void backward_reduce(const Backward& p, int64_t groups, int64_t begin, int64_t end,
                     const void* sums) {
  with_float_type(p.x_dtype,
                  [&](auto x) { reduce_groups<decltype(x)>(p, groups, begin, end, sums); });
}

}  // namespace weft::norm::cpu::WEFT_CPU_LEVEL
