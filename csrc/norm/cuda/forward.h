// Forward of the norm family, float and int8 ends. Formulas: norm/params.h.
//
// Plan. A team (team.h) takes a row: a part of a warp up to 1024 columns, where a block takes
// several rows; up to 16384 columns a block of its own, of columns / 32 threads; beyond that a
// cluster of up to 16 blocks (sm_90).
//   gather    z, from one read of every input, all of a thread's loads under way at once; it stays
//             in registers, up to 32 columns a thread. residual_out is written here.
//   moments   two sweeps over z: Σz, then Σd and Σd² of d = z - Σz / C, whose first corrects the
//             mean by what rounding had lost, so that a large mean costs no digits. RMSNorm: Σz².
//             Where squares overflow, another sweep in smaller units.
//   finish    x̂ · weight + bias; or its extremes, then int8. Each result is written once.
// Sums go chunk by chunk, then cascade, then across lanes, warps and blocks in an order that depends
// on the width alone.
//
// forward_usual: x, or x + residual_alpha · residual, in x's dtype; y in it or int8; weights in it
// or float32; aligned rows of whole chunks. forward_any takes all else: z lies in shared memory, so
// that unaligned rows can be read by columns, coalesced; rows for which that has no room (from 41k
// columns on with sm_80, 930k on sm_90) are made again tile by tile in each sweep.
//
// Cost: each input and result crosses memory once, LayerNorm in bf16 4 bytes an element, and about
// 15 operations: bound by memory. Weights come from L1 and L2: all blocks of a multiprocessor read
// the same ones. Blocks are not persistent: seven of 128 threads (70 registers in bf16, four in
// float32) fit a multiprocessor and keep loads under way while others sum, which is what a prefetch
// of the next row would do.
#pragma once

#include "norm/cuda/elements.h"
#include "norm/cuda/team.h"

namespace weft::norm::cuda {

struct ForwardCall {
  Forward p;
  Geometry g;
  Draw draw;
  int64_t tile = 0;
  float eps = 0, alpha = 1;
};

struct ForwardShared {
  SharedLayout layout;
  Shared<Two> slots;
  Shared<float> z;

  WEFT_INLINE ForwardShared(const Geometry& g, int64_t tile)
      : slots(layout.take<Two>(g.slots() * Team::kRounds)),
        z(layout.take<float>(static_cast<uint32_t>(tile) * g.rows)) {}
};

// ---- moments

struct Statistics {
  float mean, rstd;
};

// Σ d and Σ d² of d = (z - centre) · unit. row.sweep(f) calls f(z, count) for the thread's chunks,
// of which `count` elements are columns.
template <class Row>
WEFT_DEVICE Two deviations(Row& row, Team& team, float centre, float unit) {
  constexpr int E = Row::kChunk;
  Cascade sum, square;
  row.sweep([&](const Vec<float, E>& z, int count) {
    float s = 0, s2 = 0;
    for (int i = 0; i < E; ++i)
      if (i < count) {
        const float d = (z[i] - centre) * unit;
        s += d;
        s2 = fma(d, d, s2);
      }
    sum.add(s);
    square.add(s2);
  });
  return team.reduce({{sum.total(), square.total()}}, Add{});
}

// 1 / sqrt(square / C + eps), rounded once: a wrong last place would be one of the whole row. One
// step of Newton's method on the first guess, with what the roundings of the quotient, of the sum
// and of the guess's square have lost.
WEFT_DEVICE float reciprocal_root(float square, float C, float eps) {
  const float mean = square / C, v = mean + eps, guess = rsqrt(v);
  const float added = v - mean;
  const float lost = fma(-mean, C, square) / C + (eps - added) + (mean - (v - added));
  const float g2 = guess * guess, g2_lost = fma(guess, guess, -g2);
  const float off = fma(-g2, v, 1.0f) - fma(g2_lost, v, g2 * lost);
  const bool small = off < 1e-3f && off > -1e-3f;  // nor NaN, where v is infinite or tiny
  return small ? fma(0.5f * guess, off, guess) : guess;
}

template <class Row>
WEFT_DEVICE Statistics moments(const ForwardCall& call, Row& row, Team& team) {
  constexpr int E = Row::kChunk;
  constexpr float kMost = 1e37f;  // beyond this squares may have overflowed
  const float C = static_cast<float>(call.p.C);
  float guess = 0, unit = 1;
  if (!call.p.rms) {
    Cascade sum;
    row.sweep([&](const Vec<float, E>& z, int count) {
      float s = 0;
      for (int i = 0; i < E; ++i)
        if (i < count) s += z[i];
      sum.add(s);
    });
    guess = team.reduce({{sum.total(), 0}}, Add{})[0] / C;
  }
  for (;;) {
    const Two total = deviations(row, team, guess, unit);
    const bool again = unit == 1 && !(total[1] <= kMost);
    if (!team.any(again)) {
      const float correction = call.p.rms ? 0 : total[0] / C,
                  square = call.p.rms ? total[1] : max(fma(-total[0], correction, total[1]), 0.0f);
      return {guess + correction / unit, reciprocal_root(square, C, call.eps * unit * unit) * unit};
    }
    if (again) unit = 0x1p-80f;  // in which squares of large values fit
  }
}

WEFT_DEVICE void write_statistics(const ForwardCall& call, int64_t n, const Statistics& s) {
  if (call.p.mean) store(static_cast<float*>(call.p.mean.data) + n, s.mean);
  if (call.p.rstd) store(static_cast<float*>(call.p.rstd.data) + n, s.rstd);
}

// ---- finish

// What x̂ becomes: x̂ · weight + bias. kCommon: in X or float32.
template <class X, bool kCommon>
struct Affine {
  Line weight, bias;
  float offset;  // zero-centered weights are 1 less than they are

  WEFT_DEVICE Affine(const Forward& p, const Channels& w, const Channels& b, int64_t n)
      : weight(w, n, p.C), bias(b, n, p.C), offset(p.zero_centered ? 1.0f : 0.0f) {}

  template <int N>
  WEFT_DEVICE Vec<float, N> operator()(const Statistics& s, const Vec<float, N>& z,
                                       int64_t c) const {
    Vec<float, N> y = each<N>([&](int i) { return (z[i] - s.mean) * s.rstd; });
    Vec<float, N> gain = Vec<float, N>::filled(1), shift = Vec<float, N>::filled(0);
    if (weight) {
      gain = weight.load<X, N, kCommon>(c);
      gain = each<N>([&](int i) { return gain[i] + offset; });
    }
    if (bias) shift = bias.load<X, N, kCommon>(c);
    return each<N>([&](int i) { return fma(y[i], gain[i], shift[i]); });
  }
};

// t = (y - shift) / smooth
template <class X, bool kCommon>
struct Smoothed {
  Affine<X, kCommon> affine;
  Line shift, smooth;

  WEFT_DEVICE Smoothed(const Forward& p, int64_t n)
      : affine(p, p.weight, p.bias, n),
        shift(p.int8.shift, 0, p.C),
        smooth(p.int8.smooth, 0, p.C) {}

  template <int N>
  WEFT_DEVICE Vec<float, N> operator()(const Statistics& s, const Vec<float, N>& z,
                                       int64_t c) const {
    Vec<float, N> t = affine(s, z, c);
    if (shift) {
      const Vec<float, N> by = shift.load<X, N, kCommon>(c);
      t = each<N>([&](int i) { return t[i] - by[i]; });
    }
    if (smooth) {
      const Vec<float, N> by = smooth.load<X, N, kCommon>(c);
      t = each<N>([&](int i) { return t[i] * (1 / by[i]); });
    }
    return t;
  }
};

// The extremes of t, zero among them, as (-low, high); symmetric ones as (0, max |t|). NaN and
// infinities make both NaN, as nothing of the row can be kept then.
struct Extremes {
  Two value = {{0, 0}};

  template <int N>
  WEFT_DEVICE void add(bool symmetric, const Vec<float, N>& t) {
    for (int i = 0; i < N; ++i) {
      value[0] = max_nan(value[0], symmetric ? 0.0f : -t[i]);
      value[1] = max_nan(value[1], symmetric && t[i] < 0 ? -t[i] : t[i]);
    }
  }
  struct Merge {
    WEFT_DEVICE Two operator()(const Two& a, const Two& b) const {
      return {{max_nan(a[0], b[0]), max_nan(a[1], b[1])}};
    }
  };
};

struct Quantizer {
  float inverse, least, most, zero_point;

  WEFT_DEVICE Quantizer(float scale, int32_t zero)
      : inverse(1 / scale),
        least(static_cast<float>(-128 - zero)),
        most(static_cast<float>(127 - zero)),
        zero_point(static_cast<float>(zero)) {}

  // NaN becomes the least value: defined, if not meaningful.
  template <int N>
  WEFT_DEVICE Vec<int8_t, N> operator()(const Vec<float, N>& t) const {
    constexpr float kRound = 12582912;  // 1.5 · 2^23: adding it leaves no place for fractions
    Vec<int8_t, N> q;
    for (int i = 0; i < N; ++i) {
      const float v = min(max(least, t[i] * inverse), most);
      q[i] = to_i8((v + kRound) - kRound + zero_point);
    }
    return q;
  }
};

// The row's scale: the given one, or what its extremes ask for, which is written.
WEFT_DEVICE Quantizer quantizer(const Int8End& end, int64_t n, Two extremes, bool write) {
  if (end.scale) return {load(end.scale), end.zero_point};
  const float nothing = (extremes[0] - extremes[0]) + (extremes[1] - extremes[1]);  // or NaN
  const float span = end.symmetric ? extremes[1] / 127 : (extremes[0] + extremes[1]) / 255;
  const float scale = span == 0 ? 1.0f : span + nothing;
  int32_t zero_point = 0;
  if (!end.symmetric && scale == scale) zero_point = to_i8(extremes[0] / scale - 128);
  if (write) {
    store(end.scale_out + n, scale);
    if (end.zero_point_out) store(end.zero_point_out + n, zero_point);
  }
  return {scale, zero_point};
}

// ---- z in registers

// x, or x + residual_alpha · residual, which X holds exactly.
template <class X, int kColumns>
class RegisterRow {
 public:
  static constexpr int kChunk = kVecSize<X>, kChunks = kColumns / kChunk;

  WEFT_DEVICE RegisterRow(const ForwardCall& call, const Team& team, int64_t n, bool here) {
    const Forward& p = call.p;
    first_ = team.part() * static_cast<uint32_t>(call.g.span) + team.thread() * kChunk;
    step_ = call.g.lanes * kChunk;
    end_ = here ? static_cast<uint32_t>(min(p.C, (team.part() + 1) * call.g.span)) : 0;
    const X* x = reinterpret_cast<const X*>(p.x.row(n));
    each_chunk([&](int v, uint32_t c) { z_[v] = load<kChunk, Cache::streaming>(x + c); });
    if (p.residual) {
      const X* residual = reinterpret_cast<const X*>(p.residual.row(n));
      Vec<X, kChunk> more[kChunks];
      each_chunk(
          [&](int v, uint32_t c) { more[v] = load<kChunk, Cache::streaming>(residual + c); });
      each_chunk([&](int v, uint32_t) {
        const Vec<float, kChunk> a = convert<float>(z_[v]), b = convert<float>(more[v]);
        z_[v] = convert<X>(each<kChunk>([&](int i) { return fma(b[i], call.alpha, a[i]); }));
      });
    }
    if (p.residual_out) {
      X* out = reinterpret_cast<X*>(p.residual_out.row(n));
      each_chunk([&](int v, uint32_t c) { store(out + c, z_[v]); });
    }
  }

  // f(z, count) for this thread's chunks, of which `count` elements are columns.
  template <class F>
  WEFT_DEVICE void sweep(const F& f) const {
    each_chunk([&](int v, uint32_t) { f(convert<float>(z_[v]), kChunk); });
  }
  // f(z, first column)
  template <class F>
  WEFT_DEVICE void finish(const F& f) const {
    each_chunk([&](int v, uint32_t c) { f(convert<float>(z_[v]), c); });
  }

 private:
  template <class F>
  WEFT_DEVICE void each_chunk(const F& f) const {
    WEFT_UNROLL
    for (int v = 0; v < kChunks; ++v)
      if (const uint32_t c = first_ + static_cast<uint32_t>(v) * step_; c < end_) f(v, c);
  }

  uint32_t first_, step_, end_;
  Vec<X, kChunk> z_[kChunks];
};

template <class X, int kColumns, bool kInt8>
WEFT_KERNEL_BOUNDS(512, 1)
void forward_usual_kernel(WEFT_GRID_CONSTANT const ForwardCall call) {
  const Forward& p = call.p;
  const ForwardShared smem(call.g, 0);
  Team team(call.g, smem.slots);
  const bool here = team.row() < p.N;
  const int64_t n = here ? team.row() : p.N - 1;
  RegisterRow<X, kColumns> row(call, team, n, here);
  constexpr int E = RegisterRow<X, kColumns>::kChunk;
  const Statistics s = moments(call, row, team);
  const bool writes = here && team.first();
  if (writes) write_statistics(call, n, s);

  if constexpr (kInt8) {
    const Smoothed<X, true> smoothed(p, n);
    Extremes extremes;
    if (!p.int8.scale) {
      row.finish([&](const Vec<float, E>& z, uint32_t c) {
        extremes.add(p.int8.symmetric, smoothed(s, z, c));
      });
      extremes.value = team.reduce(extremes.value, Extremes::Merge{});
    }
    const Quantizer quantize = quantizer(p.int8, n, extremes.value, writes);
    int8_t* q = reinterpret_cast<int8_t*>(p.int8.q.row(n));
    row.finish(
        [&](const Vec<float, E>& z, uint32_t c) { store(q + c, quantize(smoothed(s, z, c))); });
  } else {
    const Affine<X, true> affine(p, p.weight, p.bias, n);
    X* y = reinterpret_cast<X*>(p.y.row(n));
    row.finish(
        [&](const Vec<float, E>& z, uint32_t c) { store(y + c, convert<X>(affine(s, z, c))); });
  }
}

// ---- z in shared memory

// All that z may be made of, N elements at a time.
template <class X, int N>
class Terms {
 public:
  WEFT_DEVICE Terms(const ForwardCall& call, int64_t n)
      : call_(call),
        n_(n),
        x_(call.p.x, n),
        residual_(call.p.residual, n),
        residual2_(call.p.residual2, n),
        x1_(call.p.x1, n),
        x_bias_(call.p.x_bias, 0, call.p.C),
        layerscale_(call.p.layerscale, 0, call.p.C),
        residual_out_(call.p.residual_out, n),
        rowscale_(read_scalar(call.p.rowscale, n, 1)) {}

  // z of columns c …; writes what is asked for beside it.
  WEFT_DEVICE Vec<float, N> make(int64_t c) const {
    const Draw& draw = call_.draw;
    const int64_t e = n_ * call_.p.C + c;
    Vec<float, N> z = x_.load<X, N>(c);
    if (x_bias_) add(z, x_bias_, c);
    if (call_.p.rowscale) z = each<N>([&](int i) { return z[i] * rowscale_; });
    if (layerscale_) {
      const Vec<float, N> by = layerscale_.load<X, N>(c);
      z = each<N>([&](int i) { return z[i] * by[i]; });
    }
    if (draw.on) {
      const Vec<float, N> by = factors(e, 0, call_.p.mask);
      z = each<N>([&](int i) { return z[i] * by[i]; });
    }
    if (x1_ && !draw.on) add(z, x1_, c);
    if (x1_ && draw.on) {
      const Vec<float, N> x1 = x1_.load<X, N>(c), by = factors(e, 1, call_.p.mask1);
      z = each<N>([&](int i) { return fma(x1[i], by[i], z[i]); });
    }
    if (residual_) {
      const Vec<float, N> more = residual_.load<X, N>(c);
      z = each<N>([&](int i) { return fma(more[i], call_.alpha, z[i]); });
    }
    if (residual2_) add(z, residual2_, c);
    if (!call_.p.plain()) z = rounded(call_.p.z_dtype, z);
    if (residual_out_) residual_out_.store(c, z);
    return z;
  }

  // z again, from where make() has kept it if it has.
  WEFT_DEVICE Vec<float, N> again(int64_t c) const {
    return residual_out_ ? residual_out_.load<X, N>(c) : make(c);
  }

 private:
  WEFT_DEVICE void add(Vec<float, N>& z, const Line& line, int64_t c) const {
    const Vec<float, N> more = line.load<X, N>(c);
    z = each<N>([&](int i) { return z[i] + more[i]; });
  }

  // Masks are tensors of our own making, without gaps between their rows.
  WEFT_DEVICE Vec<float, N> factors(int64_t e, int stream, const Rows& mask) const {
    const Vec<uint8_t, N> kept = call_.draw.template mask<N>(e, stream);
    if (mask) store(static_cast<uint8_t*>(mask.data) + e, kept);
    return call_.draw.factors(kept);
  }

  const ForwardCall& call_;
  int64_t n_;
  Line x_, residual_, residual2_, x1_, x_bias_, layerscale_, residual_out_;
  float rowscale_;
};

// N columns are moved at a time: chunks, or single ones that neighbouring threads take.
template <class X, int N>
class SharedRow {
 public:
  static constexpr int kChunk = kVecSize<X>;

  WEFT_DEVICE SharedRow(const ForwardCall& call, const Team& team, int64_t n, bool here,
                        Shared<float> z)
      : call_(call),
        team_(team),
        terms_(call, n),
        z_(z.from(team.index() * static_cast<uint32_t>(call.tile),
                  static_cast<uint32_t>(call.tile))),
        begin_(team.part() * call.g.span),
        stop_(min(call.p.C, begin_ + call.g.span)),
        end_(here ? stop_ : begin_) {}

  // f(z, count) for this thread's chunks, of which `count` elements are columns.
  template <class F>
  WEFT_DEVICE void sweep(const F& f) {
    tiles([&](int64_t tile, int64_t end) {
      for (int64_t c = tile + team_.thread() * kChunk; c < end; c += call_.g.lanes * kChunk)
        f(load_first<kChunk>(z_, static_cast<uint32_t>(c - tile), end - c),
          static_cast<int>(min<int64_t>(kChunk, end - c)));
    });
  }
  // f(z, first column) for the columns that this thread has made.
  template <class F>
  WEFT_DEVICE void finish(const F& f) {
    tiles([&](int64_t tile, int64_t end) {
      WEFT_NO_UNROLL
      for (int64_t c = tile + team_.thread() * N; c < end; c += call_.g.lanes * N)
        f(z_.load<N>(static_cast<uint32_t>(c - tile)), c);
    });
  }

 private:
  // f(begin, end) of each tile, when its z is in shared memory.
  template <class F>
  WEFT_DEVICE void tiles(const F& f) {
    const bool one = stop_ - begin_ <= call_.tile;
    for (int64_t tile = begin_; tile < stop_; tile += call_.tile) {
      const int64_t end = min(end_, tile + call_.tile);
      if (!one || !made_) {
        team_.sync();
        WEFT_NO_UNROLL
        for (int64_t c = tile + team_.thread() * N; c < end; c += call_.g.lanes * N)
          z_.store(static_cast<uint32_t>(c - tile), made_ ? terms_.again(c) : terms_.make(c));
        team_.sync();
      }
      f(tile, end);
    }
    made_ = true;
  }

  const ForwardCall& call_;
  const Team& team_;
  const Terms<X, N> terms_;
  Shared<float> z_;
  int64_t begin_, stop_, end_;
  bool made_ = false;
};

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(512, 1)
void forward_any_kernel(WEFT_GRID_CONSTANT const ForwardCall call) {
  constexpr int N = kVector ? kVecSize<X> : 1;
  const Forward& p = call.p;
  const ForwardShared smem(call.g, call.tile);
  Team team(call.g, smem.slots);
  const bool here = team.row() < p.N;
  const int64_t n = here ? team.row() : p.N - 1;
  SharedRow<X, N> row(call, team, n, here, smem.z);
  const Statistics s = moments(call, row, team);
  const bool writes = here && team.first();
  if (writes) write_statistics(call, n, s);

  if (p.int8) {
    const Smoothed<X, false> smoothed(p, n);
    Extremes extremes;
    if (!p.int8.scale) {
      row.finish([&](const Vec<float, N>& z, int64_t c) {
        extremes.add(p.int8.symmetric, smoothed(s, z, c));
      });
      extremes.value = team.reduce(extremes.value, Extremes::Merge{});
    }
    const Quantizer quantize = quantizer(p.int8, n, extremes.value, writes);
    int8_t* q = reinterpret_cast<int8_t*>(p.int8.q.row(n));
    row.finish(
        [&](const Vec<float, N>& z, int64_t c) { store(q + c, quantize(smoothed(s, z, c))); });
  } else {
    const Affine<X, false> affine(p, p.weight, p.bias, n), affine1(p, p.weight1, p.bias1, n);
    const Line y(p.y, n), y1(p.y1, n);
    row.finish([&](const Vec<float, N>& z, int64_t c) {
      y.store(c, affine(s, z, c));
      if (y1) y1.store(c, affine1(s, z, c));
    });
  }
}

// ---- dropout_mask

// A thread draws 16 elements.
constexpr int kMaskElements = 16;
WEFT_KERNEL void dropout_mask_kernel(const Draw draw, int64_t count, int stream, uint8_t* mask) {
  const int64_t e = (static_cast<int64_t>(block().x) * threads() + thread()) * kMaskElements;
  if (e + kMaskElements <= count) {
    store(mask + e, draw.mask<kMaskElements>(e, stream));
  } else {
    for (int64_t i = e; i < count; ++i) store(mask + i, draw.mask<1>(i, stream));
  }
}

}  // namespace weft::norm::cuda
