// Forward of the norm family on one ISA level (compiled once per level). Formulas: params.h.
//
// Plan, for a row of C channels that fits in L1/L2:
//   gather   read every input of the row once, add up z, write residual_out, take the moments. The
//            variance comes from differences to a pivot, the mean of the row's first elements, so
//            that a large mean costs no digits; a tile whose pivot was a bad guess is swept again
//            around its mean. z = x needs no copy; other z are kept in fp32 in the task's scratch.
//            Wide rows go in tiles of kTile columns whose moments are merged.
//   range    int8 with dynamic scales alone: the extremes of t.
//   finish   (z - mean) · rstd · weight + bias, written once; streaming where the caller finds the
//            result too large to stay. Two rows at a time where z is x, so that weights are read
//            and widened once for both.
//
// Cost per element of bf16 LayerNorm: 2 bytes read, 2 written, about 20 vector operations per 32
// elements: bound by memory beyond L2. The next rows are prefetched while these are finished, as
// sweeps over L1 would leave memory idle.

#include "norm/cpu/row.h"

namespace weft::norm::cpu::WEFT_CPU_LEVEL {
namespace {

// mean and 1 / sqrt(variance + eps), as the accumulator's type rounds them.
template <class A>
struct Statistics {
  A mean, rstd;

  Statistics(const Forward& p, const Moments& m)
      : mean(static_cast<A>(m.mean)),
        rstd(static_cast<A>(1 / std::sqrt(m.m2 / static_cast<double>(p.C) + p.eps))) {}
};

// The dynamic scale of a range that contains zero.
void dynamic_scale(bool symmetric, Range r, double& scale, int32_t& zero_point) {
  const double span = symmetric ? (r.max > -r.min ? r.max : -r.min) / 127 : (r.max - r.min) / 255;
  scale = span == 0 ? 1 : static_cast<float>(span);
  zero_point = 0;
  if (!symmetric && span == span)
    zero_point = static_cast<int32_t>(std::nearbyint(-128 - r.min / scale));
}

// What z is made of, as far as loops are compiled for it: x alone; x + residual_alpha · residual;
// or any of the terms.
enum class Terms { x, residual, any };

// What a call asks for that decides which loops run. Loops for the common case are compiled without
// the branches that it does not take; float64, which exists for checking gradients, has none.
template <class X>
struct Variant {
  Terms terms;
  bool common;  // weights in X's dtype or float32, y in X's own

  explicit Variant(const Forward& p) {
    const bool only_residual = p.residual && !p.x_bias && !p.rowscale && !p.layerscale &&
                               p.dropout.p == 0 && !p.x1 && !p.residual2;
    if (p.plain())
      terms = Terms::x;
    else if (only_residual && is_own<X>(p.residual) && p.z_dtype == kDType<X>)
      terms = Terms::residual;
    else
      terms = Terms::any;
    common = !std::is_same_v<X, double> && is_common<X>(p.weight) && is_common<X>(p.bias) &&
             is_own<X>(p.y) && is_common<X>(p.int8.shift);
  }
};

// f(compile-time value) for a run-time one.
template <class F>
WEFT_INLINE decltype(auto) with_bool(bool value, F&& f) {
  return value ? f(std::true_type{}) : f(std::false_type{});
}
template <class F>
WEFT_INLINE decltype(auto) with_terms(Terms terms, F&& f) {
  switch (terms) {
    case Terms::x:
      return f(std::integral_constant<Terms, Terms::x>{});
    case Terms::residual:
      return f(std::integral_constant<Terms, Terms::residual>{});
    default:
      return f(std::integral_constant<Terms, Terms::any>{});
  }
}

// The inputs of a row to come, to be prefetched.
struct Next {
  const char *x = nullptr, *residual = nullptr;

  Next(const Forward& p, int64_t n, int64_t end) {
    if (n >= end) return;
    x = p.x.row(n);
    if (p.residual) residual = p.residual.row(n);
  }

  // Columns [i, i + count) of it, for elements of the given size.
  WEFT_INLINE void prefetch(int64_t i, int64_t count, int64_t size) const {
    for (const char* row : {x, residual})
      if (row)
        for (int64_t byte = 0; byte < count * size; byte += 64)
          __builtin_prefetch(row + i * size + byte, 0, 2);
  }
};

// One row n of the problem.
template <class X>
class Row {
 public:
  using A = acc_t<X>;
  using L = Lanes<X>;

  // z, t: where this row's z is kept unless it is x, and its t for the int8 end. keep: scratch of
  // 2 · C for the dropout masks.
  Row(const Forward& p, const Variant<X>& variant, int64_t n, A* z, A* t, A* keep)
      : p_(p),
        variant_(variant),
        n_(n),
        x_(reinterpret_cast<const X*>(p.x.row(n))),
        z_(z),
        zx_(variant.terms == Terms::x ? x_ : reinterpret_cast<const X*>(z)),
        t_(t),
        keep_(keep) {}

  // Moments of z over columns [begin, end).
  [[gnu::noinline]] Moments gather(int64_t begin, int64_t end) const {
    if (variant_.terms == Terms::any) draw(begin, end);
    return with_terms(variant_.terms, [&](auto terms) {
      return with_bool(p_.rms, [&](auto rms) { return moments<terms, rms>(begin, end); });
    });
  }

  // y, and y1 from the same statistics.
  [[gnu::noinline]] void finish(int64_t begin, int64_t end, Statistics<A> s, Next next) const {
    if (p_.y1) write<false>(begin, end, s, p_.weight1, p_.bias1, p_.y1, Next(p_, 0, 0));
    with_common([&](auto common) { write<common>(begin, end, s, p_.weight, p_.bias, p_.y, next); });
  }

  // t = (y - shift) / smooth into z's place, and its extremes, zero among them. One NaN or infinity
  // makes both NaN.
  [[gnu::noinline]] Range range(int64_t begin, int64_t end, Statistics<A> s,
                                const A* inverse_smooth, Next next) const {
    return with_common([&](auto common) {
      return p_.int8.symmetric ? extremes<common, true>(begin, end, s, inverse_smooth, next)
                               : extremes<common, false>(begin, end, s, inverse_smooth, next);
    });
  }

  // q from t where the scales are dynamic, from z where static.
  [[gnu::noinline]] void quantize(int64_t begin, int64_t end, Statistics<A> s,
                                  const A* inverse_smooth, double scale, int32_t zero_point,
                                  Next next) const {
    int8_t* q = reinterpret_cast<int8_t*>(p_.int8.q.row(n_));
    const bool stream = p_.stream && reinterpret_cast<uintptr_t>(q) % kVecBytes == 0;
    const Pair<A> inverse = both<A>(static_cast<A>(1 / scale)), one = both<A>(1);
    if (p_.int8.scale) {
      const Int8Input in(p_, n_);
      const Pair<A> least = both<A>(static_cast<A>(-128 - zero_point)),
                    most = both<A>(static_cast<A>(127 - zero_point));
      with_normal<false>(s, [&](auto normal) {
        for_pairs<X>(begin, end, [&](int64_t i, auto part) {
          next.prefetch(i, L::kPair, sizeof(X));
          const Pair<A> t = smoothed<false>(normal(i, part), in, inverse_smooth, i, part);
          // NaN fails both comparisons and leaves as the least value: defined, if not meaningful.
          L::store_int8(q + i, pair_min(pair_max(t * inverse, least), most), one, zero_point, part,
                        stream);
        });
      });
    } else {  // t was kept, and lies within the scale's range
      const A* t = t_;
      for_pairs<X>(begin, end, [&](int64_t i, auto part) {
        L::store_int8(q + i, load_pair(t + i), inverse, zero_point, part, stream);
      });
    }
  }

  // All of int8 with a dynamic symmetric scale for RMSNorm of x alone without bias or shift. There
  // t = rstd · (x · gain), so the extreme needs no statistics: one sweep takes Σx² and max |x ·
  // gain|, the second writes q. Returns the scale, or -1 and nothing done where squares overflow.
  [[gnu::noinline]] double rms_int8(const A* inverse_smooth, Next next) const {
    return with_bool(p_.zero_centered && p_.weight, [&](auto zero_centered) {
      return rms_int8<zero_centered>(inverse_smooth, next);
    });
  }

  // y of two rows whose z is in X's own dtype and whose weights are the same.
  static void finish_two(const Row& first, const Row& second, Statistics<A> s, Statistics<A> s2,
                         Next next, Next next2) {
    with_bool(first.p_.rms,
              [&](auto rms) { first.template write_two<rms>(second, s, s2, next, next2); });
  }

 private:
  struct Int8Input {
    Input w, b, shift, smooth;
    bool zero_centered;
    Int8Input(const Forward& p, int64_t n)
        : w(p.weight, n, p.C),
          b(p.bias, n, p.C),
          shift(p.int8.shift, n, p.C),
          smooth(p.int8.smooth, n, p.C),
          zero_centered(p.zero_centered) {}
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

  // z of columns i…, from where it is kept.
  template <Terms kTerms>
  WEFT_INLINE auto reader() const {
    const X* zx = zx_;
    const A* z = z_;
    return [=](int64_t i, auto part) {
      return kTerms == Terms::any ? load_pair(z + i) : L::load(zx + i, part);
    };
  }

  // Puts z of columns i… there, and returns it: as it lies in memory where sums can use that.
  template <Terms kTerms>
  WEFT_INLINE auto maker() const {
    if constexpr (kTerms == Terms::x && L::kDot) {
      return [x = x_](int64_t i, auto part) { return L::load_raw(x + i, part); };
    } else if constexpr (kTerms == Terms::x) {
      return [x = x_](int64_t i, auto part) { return L::load(x + i, part); };
    } else if constexpr (kTerms == Terms::residual) {
      const X *x = x_, *residual = reinterpret_cast<const X*>(p_.residual.row(n_));
      X* z = reinterpret_cast<X*>(z_);
      const Output out(p_.residual_out, n_, p_.stream);
      const Pair<A> alpha = both<A>(static_cast<A>(p_.residual_alpha));
      return [=](int64_t i, auto part) {
        Pair<A> v = multiply_add(L::load(residual + i, part), alpha, L::load(x + i, part));
        if constexpr (L::kDot) {
          const Raw raw = L::interleave_bf16(v);
          L::store_raw(z + i, raw, part);
          if (out) L::store_raw(reinterpret_cast<X*>(out.data) + i, raw, part, out.stream);
          return raw;
        } else {
          v = L::template rounded<X>(v);
          L::store(z + i, v, part);
          if (out) store<X, true>(out, i, v, part);
          return v;
        }
      };
    } else {
      A* z = z_;
      const AnyTerms terms(*this);
      return [=](int64_t i, auto part) {
        const Pair<A> v = terms.add(i, part);
        store_pair(z + i, v);
        return v;
      };
    }
  }

  template <Terms kTerms, bool kRms>
  Moments moments(int64_t begin, int64_t end) const {
    const auto make = maker<kTerms>();
    const double count = static_cast<double>(end - begin);
    const auto around = [](Two<A>& sum, Pair<A> v, Pair<A> centre, Pair<A> unit, auto part) {
      const Pair<A> d = kRms ? v * unit : L::clear_beyond(v - centre, part) * unit;
      sum.add(d * d, d);
    };
    Sum<X> sums;
    constexpr bool kRaw = L::kDot && kTerms != Terms::any;
    const A pivot = kRaw || kRms ? A{0} : guess<kTerms>(begin, end);
    const Raw ones = broadcast<uint32_t>(0x3f803f80);  // in bf16
    sums.over(begin, end, [&, centre = both<A>(pivot)](Two<A>& sum, int64_t i, auto part) {
      const auto v = make(i, part);
      if constexpr (kRaw) {
        sum.first.lo = L::dot(v, v, sum.first.lo);
        if (!kRms) sum.second.lo = L::dot(v, ones, sum.second.lo);
      } else {
        around(sum, v, centre, both<A>(1), part);
      }
    });
    const bool fits = sums.first() <= kMost && !(kRaw && sums.first() < kLeast);
    if (kRms && fits) return {count, 0, sums.first()};
    const double mean = kRms ? 0 : pivot + sums.second() / count, offset = mean - pivot;
    // The difference may cost one bit.
    if (!kRms && fits && offset * sums.second() <= 0.5 * sums.first())
      return {count, mean, sums.first() - offset * sums.second()};

    // Around the mean as it was found, which shows by how much it is off; and in units in which
    // squares of large values fit.
    const auto read = reader<kTerms>();
    const double unit = sums.first() <= kMost ? 1 : 0x1p-80;
    Sum<X> again;
    again.over(
        begin, end,
        [&, centre = both<A>(static_cast<A>(mean)), unit = both<A>(static_cast<A>(unit))](
            Two<A>& sum, int64_t i, auto part) { around(sum, read(i, part), centre, unit, part); });
    if (kRms) return {count, 0, again.first() / unit / unit};
    const double off = again.second() / unit / count;
    return {count, static_cast<A>(mean) + off,
            (again.first() / unit - off * again.second()) / unit};
  }

  template <bool kZeroCentered>
  double rms_int8(const A* inverse_smooth, Next next) const {
    const Input w(p_.weight, n_, p_.C);
    const X* x = x_;
    const auto scaled = [&](int64_t i, auto part) {
      Pair<A> v = L::load(x + i, part);
      if (w) {
        const Pair<A> gain = load<X, true>(w, i, part);
        v = v * (kZeroCentered ? gain + both<A>(1) : gain);
      }
      return inverse_smooth ? L::clear_beyond(v * load_pair(inverse_smooth + i), part) : v;
    };
    Pair<A> extreme = both<A>(0);
    Sum<X> square;
    square.over(0, p_.C, [&](Two<A>& sum, int64_t i, auto part) {
      add_square(sum, x + i, part);
      extreme = pair_magnitude_max(extreme, scaled(i, part));
    });
    if (!(square.first() <= kMost) || (L::kDot && square.first() < kLeast)) return -1;
    const Statistics<A> s(p_, {static_cast<double>(p_.C), 0, square.first()});
    const double most = magnitude(extreme) * static_cast<double>(s.rstd);
    double scale;
    int32_t zero_point;
    dynamic_scale(true, {-most, most - most == 0 ? most : most - most}, scale, zero_point);

    int8_t* q = reinterpret_cast<int8_t*>(p_.int8.q.row(n_));
    const bool stream = p_.stream && reinterpret_cast<uintptr_t>(q) % kVecBytes == 0;
    const Pair<A> factor = both<A>(static_cast<A>(static_cast<double>(s.rstd) / scale));
    for_pairs<X>(0, p_.C, [&](int64_t i, auto part) {
      next.prefetch(i, L::kPair, sizeof(X));
      L::store_int8(q + i, scaled(i, part), factor, 0, part, stream);
    });
    return scale;
  }

  // Adds x² of a pair; the sum's two halves count together.
  template <class Part>
  WEFT_INLINE static void add_square(Two<A>& sum, const X* x, Part part) {
    if constexpr (L::kDot) {
      const Raw raw = L::load_raw(x, part);
      sum.first.lo = L::dot(raw, raw, sum.first.lo);
    } else {
      const Pair<A> v = L::load(x, part);
      sum.first = multiply_add(v, v, sum.first);
    }
  }

  // Sums of squares below this may have lost what a dot takes for zeros.
  static constexpr double kLeast = 1e-29;
  static constexpr double kMost =
      std::is_same_v<A, double> ? 1e300 : 1e37;  // sums of squares beyond this may have overflowed

  // The mean of the first pair of x, and of residual where that is all there is beside it.
  template <Terms kTerms>
  A guess(int64_t begin, int64_t end) const {
    const Tail few = {static_cast<int>(end - begin < L::kPair ? end - begin : L::kPair)};
    const auto mean = [&](const X* row) {
      return pair_sum(L::load(row + begin, few)) / static_cast<A>(few.n);
    };
    A value = mean(x_);
    if (kTerms == Terms::residual)
      value +=
          static_cast<A>(p_.residual_alpha) * mean(reinterpret_cast<const X*>(p_.residual.row(n_)));
    return value;
  }

  struct AnyTerms {
    Input x, x_bias, layerscale, x1, residual, residual2;
    Output out;
    Pair<A> rowscale, alpha;
    bool scaled, dropped;
    DType z_dtype;
    const A *keep, *keep1;

    explicit AnyTerms(const Row& row)
        : x(row.p_.x, row.n_),
          x_bias(row.p_.x_bias, 0, row.p_.C),
          layerscale(row.p_.layerscale, 0, row.p_.C),
          x1(row.p_.x1, row.n_),
          residual(row.p_.residual, row.n_),
          residual2(row.p_.residual2, row.n_),
          out(row.p_.residual_out, row.n_, row.p_.stream),
          rowscale(both<A>(read_scalar<A>(row.p_.rowscale, row.n_, 1))),
          alpha(both<A>(static_cast<A>(row.p_.residual_alpha))),
          scaled(row.p_.rowscale),
          dropped(row.p_.dropout.p != 0),
          z_dtype(row.p_.z_dtype),
          keep(row.keep_),
          keep1(row.keep_ + padded(row.p_.C)) {}

    template <class Part>
    WEFT_INLINE Pair<A> add(int64_t i, Part part) const {
      Pair<A> z = load<X>(x, i, part);
      if (x_bias) z = z + load<X>(x_bias, i, part);
      if (scaled) z = z * rowscale;
      if (layerscale) z = z * load<X>(layerscale, i, part);
      if (dropped) z = z * L::load(keep + i, part);
      if (x1)
        z = z + (dropped ? load<X>(x1, i, part) * L::load(keep1 + i, part) : load<X>(x1, i, part));
      if (residual) z = z + load<X>(residual, i, part) * alpha;
      if (residual2) z = z + load<X>(residual2, i, part);
      z = rounded<X>(z_dtype, z);
      if (out) store<X>(out, i, z, part);
      return z;
    }
  };

  template <class F>
  WEFT_INLINE decltype(auto) with_common(F&& f) const {
    if constexpr (!std::is_same_v<X, double>)
      if (variant_.common) return f(std::true_type{});
    return f(std::false_type{});
  }

  static A magnitude(Pair<A> v) {
    return reduce<A>(magnitude_max(v.lo, v.hi),
                     [](auto a, auto b) { return (a > b) | (a != a) ? a : b; });
  }

  // f(normal), where normal(i, part) is x̂.
  template <bool kCommon, class F>
  WEFT_INLINE void with_normal(const Statistics<A>& s, F&& f) const {
    const X* zx = zx_;
    const A* z = z_;
    const Pair<A> mean = both<A>(s.mean), rstd = both<A>(s.rstd);
    const auto normal = [&](auto as_x, auto rms) {
      return [=](int64_t i, auto part) {
        const Pair<A> v = as_x ? L::load(zx + i, part) : load_pair(z + i);
        return (rms ? v : v - mean) * rstd;
      };
    };
    const bool as_x = variant_.terms != Terms::any, rms = p_.rms;
    if constexpr (kCommon)
      with_bool(as_x,
                [&](auto is_x) { with_bool(rms, [&](auto is_rms) { f(normal(is_x, is_rms)); }); });
    else
      f(normal(as_x, rms));
  }

  template <bool kCommon, class Part>
  WEFT_INLINE static Pair<A> affine(Pair<A> v, const Input& w, const Input& b, bool zero_centered,
                                    int64_t i, Part part) {
    Pair<A> gain = both<A>(1), shift = both<A>(0);
    if (w) gain = load<X, kCommon>(w, i, part);
    if (w && zero_centered) gain = gain + both<A>(1);
    if (b) shift = load<X, kCommon>(b, i, part);
    return multiply_add(v, gain, shift);
  }

  template <bool kCommon>
  void write(int64_t begin, int64_t end, Statistics<A> s, const Channels& weight,
             const Channels& bias, const Rows& to, Next next) const {
    const Input w(weight, n_, p_.C), b(bias, n_, p_.C);
    const Output y(to, n_, p_.stream);
    const bool zero_centered = p_.zero_centered;
    with_normal<kCommon>(s, [&](auto normal) {
      for_pairs<X>(begin, end, [&](int64_t i, auto part) {
        next.prefetch(i, L::kPair, sizeof(X));
        store<X, kCommon>(y, i, affine<kCommon>(normal(i, part), w, b, zero_centered, i, part),
                          part);
      });
    });
  }

  template <bool kRms>
  void write_two(const Row& other, Statistics<A> s, Statistics<A> s2, Next next, Next next2) const {
    const Input w(p_.weight, n_, p_.C), b(p_.bias, n_, p_.C);
    const Output y(p_.y, n_, p_.stream), y2(p_.y, other.n_, p_.stream);
    const X *z = zx_, *z2 = other.zx_;
    const Pair<A> mean = both<A>(s.mean), mean2 = both<A>(s2.mean), rstd = both<A>(s.rstd),
                  rstd2 = both<A>(s2.rstd);
    const Pair<A> one = both<A>(p_.zero_centered ? 1 : 0);
    for_pairs<X>(0, p_.C, [&](int64_t i, auto part) {
      next.prefetch(i, L::kPair, sizeof(X));
      next2.prefetch(i, L::kPair, sizeof(X));
      const Pair<A> v = L::load(z + i, part), v2 = L::load(z2 + i, part);
      Pair<A> gain = both<A>(1), shift = both<A>(0);
      if (w) gain = load<X, true>(w, i, part) + one;
      if (b) shift = load<X, true>(b, i, part);
      store<X, true>(y, i, multiply_add((kRms ? v : v - mean) * rstd, gain, shift), part);
      store<X, true>(y2, i, multiply_add((kRms ? v2 : v2 - mean2) * rstd2, gain, shift), part);
    });
  }

  template <bool kCommon, class Part>
  WEFT_INLINE static Pair<A> smoothed(Pair<A> v, const Int8Input& in, const A* inverse_smooth,
                                      int64_t i, Part part) {
    v = affine<kCommon>(v, in.w, in.b, in.zero_centered, i, part);
    if (in.shift) v = v - load<X, kCommon>(in.shift, i, part);
    if (inverse_smooth) return v * load_pair(inverse_smooth + i);
    if (in.smooth) v = v * (both<A>(1) / load<X>(in.smooth, i, part));
    return v;
  }

  template <bool kCommon, bool kSymmetric>
  Range extremes(int64_t begin, int64_t end, Statistics<A> s, const A* inverse_smooth,
                 Next next) const {
    const Int8Input in(p_, n_);
    A* t_row = t_;
    Pair<A> low = both<A>(0), high = both<A>(0), poison = both<A>(0);
    with_normal<kCommon>(s, [&](auto normal) {
      for_pairs<X>(begin, end, [&, inverse_smooth](int64_t i, auto part) {
        next.prefetch(i, L::kPair, sizeof(X));
        const Pair<A> t =
            L::clear_beyond(smoothed<kCommon>(normal(i, part), in, inverse_smooth, i, part), part);
        store_pair(t_row + i, t);
        if constexpr (kSymmetric) {
          high = pair_magnitude_max(high, t);
        } else {
          low = pair_min(t, low);
          high = pair_max(t, high);
          poison = poison + t * both<A>(0);
        }
      });
    });
    const A nan = pair_sum(poison);
    if constexpr (kSymmetric) {
      const A most = magnitude(high);
      return {-most, most - most == 0 ? most : most - most};  // infinity - infinity is NaN
    }
    return {reduce<A>(vmin(low.lo, low.hi), [](auto a, auto b) { return a < b ? a : b; }) + nan,
            reduce<A>(vmax(high.lo, high.hi), [](auto a, auto b) { return a > b ? a : b; }) + nan};
  }

  const Forward& p_;
  const Variant<X>& variant_;
  const int64_t n_;
  const X* const x_;
  A* z_;  // where terms are any; else z is in X's own dtype, at zx_
  const X* zx_;
  A *t_, *keep_;
};

void scale_of(const Forward& p, int64_t n, Range r, bool write, double& scale,
              int32_t& zero_point) {
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
  A* t = z + padded(p.C);  // z of every other row, where rows go two at a time
  A* keep = t + padded(p.C);
  const Variant<X> variant(p);
  const A* inverse_smooth = nullptr;
  if (p.int8 && p.int8.smooth) {
    A* inverse = keep + 2 * padded(p.C);
    const Input smooth(p.int8.smooth, 0, p.C);
    for_pairs<X>(0, p.C, [&](int64_t i, auto part) {
      store_pair(inverse + i, both<A>(1) / load<X>(smooth, i, part));
    });
    inverse_smooth = inverse;
  }
  const auto statistics = [&](const Row<X>& row, int64_t n) {
    Moments m = {0, 0, 0};
    for (int64_t c = 0; c < p.C; c += kTile)
      m = merge(m, row.gather(c, c + kTile < p.C ? c + kTile : p.C));
    const Statistics<A> s(p, m);
    write_statistics(p, n, s);
    return s;
  };
  const bool by_two = variant.terms != Terms::any && variant.common && !p.int8 && !p.y1 &&
                      p.weight.heads * p.bias.heads == 1;
  const bool fused_int8 = p.int8 && !p.int8.scale && p.int8.symmetric && p.rms &&
                          variant.terms == Terms::x && variant.common && !p.bias && !p.int8.shift &&
                          p.C <= 4 * kTile;  // wider rows want their sum in tiles
  for (int64_t n = begin; n < end; ++n) {
    const Row<X> row(p, variant, n, z, t, keep);
    if (fused_int8) {
      const double scale = row.rms_int8(inverse_smooth, Next(p, n + 1, end));
      if (scale != -1) {
        p.int8.scale_out[n] = static_cast<float>(scale);
        if (p.int8.zero_point_out) p.int8.zero_point_out[n] = 0;
        continue;
      }
    }
    const Statistics<A> s = statistics(row, n);
    if (p.int8) {
      double scale;
      int32_t zero_point;
      const Next next(p, n + 1, end);
      scale_of(p, n, p.int8.scale ? Range{} : row.range(0, p.C, s, inverse_smooth, next), true,
               scale, zero_point);
      row.quantize(0, p.C, s, inverse_smooth, scale, zero_point, next);
    } else if (by_two && n + 1 < end) {
      const Row<X> second(p, variant, ++n, t, nullptr, keep);
      const Statistics<A> s2 = statistics(second, n);
      Row<X>::finish_two(row, second, s, s2, Next(p, n + 1, end), Next(p, n + 2, end));
    } else {
      row.finish(0, p.C, s, Next(p, n + 1, end));
    }
  }
  if (p.stream) stream_fence();
}

template <class X>
void gather(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, void* keep,
            Moments* out) {
  using A = acc_t<X>;
  *out = Row<X>(p, Variant<X>(p), n, static_cast<A*>(z), nullptr, static_cast<A*>(keep))
             .gather(begin, end);
  if (p.stream) stream_fence();
}

template <class X>
void range(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m,
           Range* out) {
  using A = acc_t<X>;
  *out = Row<X>(p, Variant<X>(p), n, static_cast<A*>(z), static_cast<A*>(z) + padded(p.C), nullptr)
             .range(begin, end, Statistics<A>(p, m), nullptr, Next(p, 0, 0));
}

template <class X>
void finish(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m, Range r) {
  using A = acc_t<X>;
  const Statistics<A> s(p, m);
  const Variant<X> variant(p);
  const Row<X> row(p, variant, n, static_cast<A*>(z), static_cast<A*>(z) + padded(p.C), nullptr);
  if (begin == 0) write_statistics(p, n, s);
  if (p.int8) {
    double scale;
    int32_t zero_point;
    scale_of(p, n, r, begin == 0, scale, zero_point);
    row.quantize(begin, end, s, nullptr, scale, zero_point, Next(p, 0, 0));
  } else {
    row.finish(begin, end, s, Next(p, 0, 0));
  }
  if (p.stream) stream_fence();
}

}  // namespace

void forward_rows(const Forward& p, int64_t begin, int64_t end, void* scratch) {
  with_float_type(p.x.dtype, [&](auto x) { rows<decltype(x)>(p, begin, end, scratch); });
}
void forward_gather(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, void* keep,
                    Moments* m) {
  with_float_type(p.x.dtype, [&](auto x) { gather<decltype(x)>(p, n, begin, end, z, keep, m); });
}
void forward_range(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m,
                   Range* r) {
  with_float_type(p.x.dtype, [&](auto x) { range<decltype(x)>(p, n, begin, end, z, m, r); });
}
void forward_finish(const Forward& p, int64_t n, int64_t begin, int64_t end, void* z, Moments m,
                    Range r) {
  with_float_type(p.x.dtype, [&](auto x) { finish<decltype(x)>(p, n, begin, end, z, m, r); });
}
void dropout_mask(Dropout dropout, int64_t first, int64_t count, int stream, bool* mask) {
  draw_dropout<float>(dropout, first, count, stream, nullptr, mask);
}

}  // namespace weft::norm::cpu::WEFT_CPU_LEVEL
