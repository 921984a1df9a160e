// Forward of the norm family on one ISA level (compiled once per level): see params.h for the formulas.
//
// Plan, for a row of C channels that fits in L1/L2:
//   gather   read every input of the row once, add up z, write residual_out; Σz for the mean (RMSNorm: Σz²). Then, from L1,
//            Σ(z - mean)²: two passes, so a large mean costs no digits. z = x needs no copy; other z are kept in fp32 in the
//            task's scratch. Wide rows go in tiles of kTile columns whose moments are merged (Chan, Golub, LeVeque 1979).
//   range    int8 with dynamic scales alone: t, kept in the scratch, and its extremes.
//   finish   (z - mean) · rstd · weight + bias, written once; streaming where the caller finds the result too large to stay.
//
// Cost per element of bf16 LayerNorm: 2 bytes read, 2 written, about 10 vector operations per 32 elements and sweep: bound by
// memory beyond L2. The next row is prefetched while this one is finished, as the sweeps over L1 would leave memory idle.

#include "norm/cpu/row.h"

namespace weft::norm::cpu::WEFT_CPU_LEVEL {
namespace {

// mean and 1 / sqrt(variance + eps), as the accumulator's type rounds them.
template <class A>
struct Statistics {
  A mean, rstd;

  Statistics(const Forward& p, const Moments& m)
      : mean(static_cast<A>(m.mean)), rstd(static_cast<A>(1 / std::sqrt(m.m2 / static_cast<double>(p.C) + p.eps))) {}
};

// One row n of the problem.
template <class X>
class Row {
 public:
  using A = acc_t<X>;
  using L = Lanes<X>;

  // z: where this row's z (later t) is kept, or null where z is x. keep: scratch of 2 · C for the dropout masks.
  Row(const Forward& p, int64_t n, A* z, A* keep) : p_(p), n_(n), plain_(p.plain()), x_(p.x, n), z_(z), keep_(keep) {}

  // Moments of z over columns [begin, end).
  Moments gather(int64_t begin, int64_t end) const {
    if (plain_) return p_.rms ? moments<true, true>(begin, end) : moments<true, false>(begin, end);
    draw(begin, end);
    return p_.rms ? moments<false, true>(begin, end) : moments<false, false>(begin, end);
  }

  void finish(int64_t begin, int64_t end, Statistics<A> s, const char* next) const {
    const Input w(p_.weight, n_, p_.C), b(p_.bias, n_, p_.C);
    const Output y(p_.y, n_, p_.stream);
    if (p_.y1) {  // the second pair of weights re-reads z from the cache
      const Input w1(p_.weight1, n_, p_.C), b1(p_.bias1, n_, p_.C);
      const Output y1(p_.y1, n_, p_.stream);
      for_pairs<X>(begin, end, [&](int64_t i, auto part) { store<X>(y1, i, affine(normal(s, i, part), w1, b1, i, part), part); });
    }
    for_pairs<X>(begin, end, [&](int64_t i, auto part) {
      prefetch(next, i);
      store<X>(y, i, affine(normal(s, i, part), w, b, i, part), part);
    });
  }

  // t = (y - shift) / smooth into z's place, and its extremes, zero among them. One NaN or infinity makes both NaN.
  Range range(int64_t begin, int64_t end, Statistics<A> s, const A* inverse_smooth) const {
    Pair<A> low = both<A>(0), high = both<A>(0), poison = both<A>(0);
    const Int8Input in(p_, n_);
    for_pairs<X>(begin, end, [&](int64_t i, auto part) {
      const Pair<A> t = L::clear_beyond(smoothed(normal(s, i, part), in, inverse_smooth, i, part), part);
      low = pair_min(t, low);
      high = pair_max(t, high);
      poison = poison + t * both<A>(0);
      keep_pair(z_, i, t);
    });
    const A nan = pair_sum(poison);
    return {reduce<A>(vmin(low.lo, low.hi), [](A a, A b) { return a < b ? a : b; }) + nan,
            reduce<A>(vmax(high.lo, high.hi), [](A a, A b) { return a > b ? a : b; }) + nan};
  }

  // q from t where the scales are dynamic, from z where static.
  void quantize(int64_t begin, int64_t end, Statistics<A> s, const A* inverse_smooth, double scale, int32_t zero_point,
                const char* next) const {
    const Pair<A> inverse = both<A>(static_cast<A>(1 / scale)), zero = both<A>(static_cast<A>(zero_point));
    const Pair<A> least = both<A>(-128), most = both<A>(127);
    const Int8Input in(p_, n_);
    const bool dynamic = !p_.int8.scale;
    int8_t* q = reinterpret_cast<int8_t*>(p_.int8.q.row(n_));
    const bool stream = p_.stream && reinterpret_cast<uintptr_t>(q) % kVecBytes == 0;
    for_pairs<X>(begin, end, [&](int64_t i, auto part) {
      prefetch(next, i);
      const Pair<A> t = dynamic ? kept_pair(z_, i) : smoothed(normal(s, i, part), in, inverse_smooth, i, part);
      // NaN fails both comparisons and leaves as the least value: defined, if not meaningful.
      L::store_int8(q + i, pair_min(pair_max(t * inverse + zero, least), most), part, stream);
    });
  }

 private:
  struct Int8Input {
    Input w, b, shift, smooth;
    Int8Input(const Forward& p, int64_t n)
        : w(p.weight, n, p.C), b(p.bias, n, p.C), shift(p.int8.shift, n, p.C), smooth(p.int8.smooth, n, p.C) {}
  };

  void draw(int64_t begin, int64_t end) const {
    if (p_.dropout.p == 0) return;
    const int64_t first = n_ * p_.C + begin;
    bool* mask = p_.mask ? reinterpret_cast<bool*>(p_.mask.row(n_)) + begin : nullptr;
    draw_dropout<A>(p_.dropout, first, end - begin, 0, keep_ + begin, mask);
    if (!p_.x1) return;
    bool* mask1 = p_.mask1 ? reinterpret_cast<bool*>(p_.mask1.row(n_)) + begin : nullptr;
    draw_dropout<A>(p_.dropout, first, end - begin, 1, keep_ + padded(p_.C) + begin, mask1);
  }

  template <bool kPlain, bool kRms>
  Moments moments(int64_t begin, int64_t end) const {
    Pair<A> sum = both<A>(0), sum2 = both<A>(0);
    const double count = static_cast<double>(end - begin);
    if constexpr (kPlain) {
      for_two_pairs(begin, end, [&](int64_t i, auto part, Pair<A>& to) {
        const Pair<A> v = L::load(reinterpret_cast<const X*>(x_.data) + i, part);
        to = kRms ? to + v * v : to + v;
      }, sum, sum2);
    } else {
      const Terms terms(*this);
      for_pairs<X>(begin, end, [&](int64_t i, auto part) {
        const Pair<A> v = terms.add(i, part);
        sum = kRms ? sum + v * v : sum + v;
        keep_pair(z_, i, v);
      });
    }
    const double total = static_cast<double>(pair_sum(sum + sum2));
    if (kRms) return {count, 0, total};

    const A mean = static_cast<A>(total / count);
    const Pair<A> centre = both<A>(mean);
    sum = sum2 = both<A>(0);
    for_two_pairs(begin, end, [&](int64_t i, auto part, Pair<A>& to) {
      const Pair<A> v = kPlain ? L::load(reinterpret_cast<const X*>(x_.data) + i, part) : kept_pair(z_, i);
      const Pair<A> d = L::clear_beyond(v - centre, part);
      to = to + d * d;
    }, sum, sum2);
    return {count, mean, static_cast<double>(pair_sum(sum + sum2))};
  }

  // Two sums in turn, so that the latency of an addition does not set the pace.
  template <class F>
  static void for_two_pairs(int64_t begin, int64_t end, F&& f, Pair<A>& even, Pair<A>& odd) {
    int64_t i = begin;
    for (; i + 2 * L::kPair <= end; i += 2 * L::kPair) {
      f(i, Full{}, even);
      f(i + L::kPair, Full{}, odd);
    }
    for_pairs<X>(i, end, [&](int64_t j, auto part) { f(j, part, even); });
  }

  // The terms of z.
  struct Terms {
    Input x, x_bias, layerscale, x1, residual, residual2;
    Output out;
    Pair<A> rowscale, alpha;
    bool scaled, dropped;
    const A *keep, *keep1;

    explicit Terms(const Row& row)
        : x(row.x_), x_bias(row.p_.x_bias, 0, row.p_.C), layerscale(row.p_.layerscale, 0, row.p_.C), x1(row.p_.x1, row.n_),
          residual(row.p_.residual, row.n_), residual2(row.p_.residual2, row.n_),
          out(row.p_.residual_out, row.n_, row.p_.stream), rowscale(both<A>(read_scalar<A>(row.p_.rowscale, row.n_, 1))),
          alpha(both<A>(static_cast<A>(row.p_.residual_alpha))), scaled(row.p_.rowscale), dropped(row.p_.dropout.p != 0),
          keep(row.keep_), keep1(row.keep_ + padded(row.p_.C)) {}

    template <class Part>
    WEFT_INLINE Pair<A> add(int64_t i, Part part) const {
      Pair<A> z = load<X>(x, i, part);
      if (x_bias) z = z + load<X>(x_bias, i, part);
      if (scaled) z = z * rowscale;
      if (layerscale) z = z * load<X>(layerscale, i, part);
      if (dropped) z = z * L::load(keep + i, part);
      if (x1) z = z + (dropped ? load<X>(x1, i, part) * L::load(keep1 + i, part) : load<X>(x1, i, part));
      if (residual) z = z + load<X>(residual, i, part) * alpha;
      if (residual2) z = z + load<X>(residual2, i, part);
      if (out) store<X>(out, i, z, part);
      return z;
    }
  };

  template <class Part>
  WEFT_INLINE Pair<A> normal(const Statistics<A>& s, int64_t i, Part part) const {
    Pair<A> v = plain_ ? L::load(reinterpret_cast<const X*>(x_.data) + i, part) : kept_pair(z_, i);
    if (!p_.rms) v = v - both<A>(s.mean);
    return v * both<A>(s.rstd);
  }

  template <class Part>
  WEFT_INLINE Pair<A> affine(Pair<A> v, const Input& w, const Input& b, int64_t i, Part part) const {
    if (w) {
      Pair<A> gain = load<X>(w, i, part);
      if (p_.zero_centered) gain = gain + both<A>(1);
      v = v * gain;
    }
    if (b) v = v + load<X>(b, i, part);
    return v;
  }

  template <class Part>
  WEFT_INLINE Pair<A> smoothed(Pair<A> v, const Int8Input& in, const A* inverse_smooth, int64_t i, Part part) const {
    v = affine(v, in.w, in.b, i, part);
    if (in.shift) v = v - load<X>(in.shift, i, part);
    if (inverse_smooth) return v * kept_pair(inverse_smooth, i);
    if (in.smooth) v = v * (both<A>(1) / load<X>(in.smooth, i, part));
    return v;
  }

  WEFT_INLINE static void prefetch(const char* next, int64_t i) {
    const char* at = next + i * static_cast<int64_t>(sizeof(X));
    for (size_t byte = 0; byte < L::kPair * sizeof(X); byte += 64) __builtin_prefetch(at + byte);
  }

  const Forward& p_;
  const int64_t n_;
  const bool plain_;
  const Input x_;
  A *z_, *keep_;
};

// The dynamic scale of a range that contains zero.
void dynamic_scale(bool symmetric, Range r, double& scale, int32_t& zero_point) {
  const double span = symmetric ? (r.max > -r.min ? r.max : -r.min) / 127 : (r.max - r.min) / 255;
  scale = span == 0 ? 1 : static_cast<float>(span);
  zero_point = 0;
  if (!symmetric && span == span) zero_point = static_cast<int32_t>(std::nearbyint(-128 - r.min / scale));
}

void scale_of(const Forward& p, int64_t n, Range r, bool write, double& scale, int32_t& zero_point) {
  if (p.int8.scale) {
    scale = *p.int8.scale;
    zero_point = p.int8.zero_point;
    return;
  }
  dynamic_scale(p.int8.symmetric, r, scale, zero_point);
  if (!write) return;
  p.int8.scale_out[n] = static_cast<float>(scale);
  if (p.int8.zero_point_out) p.int8.zero_point_out[n] = zero_point;
}

template <class A>
void write_statistics(const Forward& p, int64_t n, const Statistics<A>& s) {
  write_scalar<A>(p.mean, n, s.mean);
  write_scalar<A>(p.rstd, n, s.rstd);
}

template <class X>
void rows(const Forward& p, int64_t begin, int64_t end, void* scratch) {
  using A = acc_t<X>;
  A* z = static_cast<A*>(scratch);
  A* keep = z + padded(p.C);
  const A* inverse_smooth = nullptr;
  if (p.int8 && p.int8.smooth) {
    A* inverse = keep + 2 * padded(p.C);
    const Input smooth(p.int8.smooth, 0, p.C);
    for_pairs<X>(0, p.C, [&](int64_t i, auto part) {
      keep_pair(inverse, i, both<A>(1) / load<X>(smooth, i, part));
    });
    inverse_smooth = inverse;
  }
  for (int64_t n = begin; n < end; ++n) {
    const Row<X> row(p, n, z, keep);
    const char* next = p.x.row(n + 1 < end ? n + 1 : n);
    Moments m = {0, 0, 0};
    for (int64_t c = 0; c < p.C; c += kTile) m = merge(m, row.gather(c, c + kTile < p.C ? c + kTile : p.C));
    const Statistics<A> s(p, m);
    write_statistics(p, n, s);
    if (p.int8) {
      double scale;
      int32_t zero_point;
      scale_of(p, n, p.int8.scale ? Range{} : row.range(0, p.C, s, inverse_smooth), true, scale, zero_point);
      row.quantize(0, p.C, s, inverse_smooth, scale, zero_point, next);
    } else {
      row.finish(0, p.C, s, next);
    }
  }
  if (p.stream) stream_fence();
}

template <class X>
void gather(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, void* keep, Moments* out) {
  using A = acc_t<X>;
  *out = Row<X>(p, n, static_cast<A*>(z), static_cast<A*>(keep)).gather(begin, end);
  if (p.stream) stream_fence();
}

template <class X>
void range(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m, Range* out) {
  using A = acc_t<X>;
  *out = Row<X>(p, n, static_cast<A*>(z), nullptr).range(begin, end, Statistics<A>(p, m), nullptr);
}

template <class X>
void finish(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m, Range r) {
  using A = acc_t<X>;
  const Statistics<A> s(p, m);
  const Row<X> row(p, n, static_cast<A*>(z), nullptr);
  if (begin == 0) write_statistics(p, n, s);
  if (p.int8) {
    double scale;
    int32_t zero_point;
    scale_of(p, n, r, begin == 0, scale, zero_point);
    row.quantize(begin, end, s, nullptr, scale, zero_point, p.x.row(n));
  } else {
    row.finish(begin, end, s, p.x.row(n));
  }
  if (p.stream) stream_fence();
}

}  // namespace

void forward_rows(const Forward& p, int64_t begin, int64_t end, void* scratch) {
  with_float_type(p.x.dtype, [&](auto x) { rows<decltype(x)>(p, begin, end, scratch); });
}
void forward_gather(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, void* keep, Moments* m) {
  with_float_type(p.x.dtype, [&](auto x) { gather<decltype(x)>(p, n, begin, end, z, keep, m); });
}
void forward_range(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m, Range* r) {
  with_float_type(p.x.dtype, [&](auto x) { range<decltype(x)>(p, n, begin, end, z, m, r); });
}
void forward_finish(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m, Range r) {
  with_float_type(p.x.dtype, [&](auto x) { finish<decltype(x)>(p, n, begin, end, z, m, r); });
}
void dropout_mask(Dropout dropout, int64_t first, int64_t count, int stream, bool* mask) {
  draw_dropout<float>(dropout, first, count, stream, nullptr, mask);
}

}  // namespace weft::norm::cpu::WEFT_CPU_LEVEL
