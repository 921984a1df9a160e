// A row of scores between the two products: which keys its query sees, and what the options make of
// them. For one ISA level; forward and backward share it.
#pragma once

#include <cmath>
#include <cstring>

#include "attention/params.h"
#include "cpu/exp.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {

using namespace ::weft::cpu::WEFT_CPU_LEVEL;

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Keys [begin, end).
struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

inline Range intersect(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// The keys that query i of a sequence of S and T sees.
inline int64_t key_offset(const Problem& p, const Problem::Extent& e) {
  return p.top_left ? 0 : e.T - e.S;
}
inline Range visible(const Problem& p, const Problem::Extent& e, int64_t i) {
  const int64_t at = i + key_offset(p, e);
  return intersect({0, e.T}, {p.window_left < 0 ? 0 : at - p.window_left,
                              p.window_right < 0 ? e.T : at + p.window_right + 1});
}

// The first of n bytes that is not 0, each `stride` behind the one before; n where there is none.
inline int64_t first_set(const char* p, int64_t n, int64_t stride) {
  int64_t i = 0;
  if (stride == 1 || stride == -1)
    for (uint64_t eight; i + 8 <= n; i += 8) {
      std::memcpy(&eight, stride > 0 ? p + i : p - i - 7, 8);
      if (eight) break;
    }
  while (i < n && !p[i * stride]) ++i;
  return i;
}

// `keys` without those at its ends that the mask hides from all of n rows, query(r) of head(r).
template <class Query, class Head>
inline Range shown(const Problem& p, int64_t b, Range keys, int64_t n, Query&& query, Head&& head) {
  if (!p.mask || keys.empty()) return keys;
  Range some = {keys.end, keys.begin};
  const char* last = nullptr;
  for (int64_t r = 0; r < n; ++r) {
    const char* row = p.mask.at(b, head(r), query(r), keys.begin);
    if (row == last) continue;  // a mask that rows or heads share
    last = row;
    const int64_t stride = p.mask.column, back = keys.end - 1 - keys.begin;
    some.begin = keys.begin + first_set(row, some.begin - keys.begin, stride);
    some.end = keys.end - first_set(row + back * stride, keys.end - some.end, -stride);
  }
  return some;
}

// Whether anything but the scale stands between the product and the exponential.
inline bool has_options(const Problem& p) {
  return p.softcap > 0 || p.bias || p.mask || p.alibi.data;
}

// tanh, within an ulp or two: by its series near 0, where 1 - 2 / (1 + e^2x) would cancel.
inline Vec<float> tanh(Vec<float> x) {
  const Vec<float> x2 = x * x;
  Vec<float> series = broadcast(-0.00886323553f);
  for (float c : {0.0218694885f, -0.0539682540f, 0.133333333f, -0.333333333f})
    series = multiply_add(series, x2, broadcast(c));
  const Vec<float> near = multiply_add(x * x2, series, x);
  const Vec<float> e = exp2<Exp2::full>(x * broadcast(static_cast<float>(2 * kLog2e)));
  const Vec<float> far = 1.0f - 2.0f / (e + 1.0f);
  return x2 < broadcast(0.09f) ? near : far;
}
inline Vec<double> tanh(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

// The first n of a vector's elements, zeros behind; stride is between them in memory.
template <class A, class U>
inline Vec<A> load_some(const U* p, int64_t n, int64_t stride) {
  if (stride == 1 && n >= kLanes<A>) return load_lanes<A>(p);
  Vec<A> v = {};
  for (int64_t i = 0; i < n && i < kLanes<A>; ++i) v[i] = static_cast<A>(widen(p[i * stride]));
  return v;
}

// One row: query i of head h of sequence b.
struct ScoreRow {
  const Problem& p;
  int64_t b, h, i, offset;

  ScoreRow(const Problem& problem, const Problem::Extent& e, int64_t batch, int64_t head,
           int64_t query)
      : p(problem), b(batch), h(head), i(query), offset(key_offset(problem, e)) {}

  // Scores [keys) of the row, s[t - first] = q · k, become logarithms to base 2 of what softmax sums
  // up. Taken by whole vectors from s on, so that others within these may change.
  template <class A>
  void apply(A* s, int64_t first, Range keys) const {
    if (keys.empty()) return;
    keys.begin = first + (keys.begin - first) / kLanes<A> * kLanes<A>;
    const int64_t count = keys.end - keys.begin;
    A* begin = s + (keys.begin - first);
    const A scale = static_cast<A>(p.softmax_scale * (p.softcap > 0 ? 1 / p.softcap : kLog2e));
    const A cap = static_cast<A>(p.softcap * kLog2e);
    if (p.softcap > 0)
      for (int64_t t = 0; t < count; t += kLanes<A>)
        store_vec<A>(begin + t, tanh(load_vec<A>(begin + t) * broadcast(scale)) * broadcast(cap));
    else if (!p.bias)
      for (int64_t t = 0; t < count; t += kLanes<A>)
        store_vec<A>(begin + t, load_vec<A>(begin + t) * broadcast(scale));
    if (p.bias) add_bias(begin, keys, p.softcap > 0 ? 1 : scale);
    if (p.alibi.data) add_alibi(begin, keys);
    if (p.mask) hide(begin, keys);
  }

 private:
  template <class A>
  void add_alibi(A* s, Range keys) const {
    const A slope = static_cast<A>(p.alibi.at(b, 0, h) * kLog2e);
    Vec<A> distance;
    for (int l = 0; l < kLanes<A>; ++l) distance[l] = static_cast<A>(keys.begin + l - (i + offset));
    for (int64_t t = 0; t < keys.end - keys.begin; t += kLanes<A>) {
      const Vec<A> away = distance < 0 ? -distance : distance;
      store_vec<A>(s + t, load_vec<A>(s + t) - away * broadcast(slope));
      distance += static_cast<A>(kLanes<A>);
    }
  }

  // s = s · scale + bias, one sweep for both.
  template <class A>
  void add_bias(A* s, Range keys, A scale) const {
    const char* row = p.bias.at(b, h, i, keys.begin);
    const int64_t count = keys.end - keys.begin, stride = p.bias.column;
    with_float_type(p.bias.dtype, [&](auto type) {
      const auto* bias = reinterpret_cast<const decltype(type)*>(row);
      for (int64_t t = 0; t < count; t += kLanes<A>)
        store_vec<A>(s + t, multiply_add(load_some<A>(bias + t * stride, count - t, stride),
                                         broadcast(static_cast<A>(kLog2e)),
                                         load_vec<A>(s + t) * broadcast(scale)));
    });
  }

  template <class A>
  void hide(A* s, Range keys) const {
    const auto* seen = reinterpret_cast<const int8_t*>(p.mask.at(b, h, i, keys.begin));
    const int64_t count = keys.end - keys.begin, stride = p.mask.column;
    const Vec<A> hidden = broadcast(-static_cast<A>(__builtin_inf()));
    for (int64_t t = 0; t < count; t += kLanes<A>) {
      const Vec<A> keep = load_some<A>(seen + t * stride, count - t, stride);
      store_vec<A>(s + t, keep != 0 ? load_vec<A>(s + t) : hidden);
    }
  }
};

}  // namespace weft::attention::cpu::WEFT_CPU_LEVEL
