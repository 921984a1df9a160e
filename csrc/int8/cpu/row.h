// Rows on their way to int8, on one ISA level: t = (activation(x) - shift) / smooth in floats, its
// extremes, its rounding.
#pragma once

#include <type_traits>

#include "cpu/activation.h"
#include "cpu/panel_int8.h"
#include "int8/cpu/kernels.h"

namespace weft::int8::cpu::WEFT_CPU_LEVEL {

using namespace ::weft::cpu::WEFT_CPU_LEVEL;  // NOLINT: one level's vectors

constexpr int kFloats = kLanes<float>;

template <class F>
inline void with_float(DType t, F&& f) {
  switch (t) {
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      return f(float{});
  }
}

// A whole vector: compilers convert 16-bit lanes one by one where they are left to it.
template <class T>
WEFT_INLINE void store_whole(T* p, Vec<float> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, bf16>)
    return _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(p),
        _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(round_to_bf16(v) >> 16)));
#endif
  store_lanes<float>(p, v);
}

// A vector from the n elements at p, zeros behind them.
template <class T>
WEFT_INLINE Vec<float> load_some(const T* p, int64_t n) {
  if (n >= kFloats) return load_lanes<float>(p);
  T some[kFloats] = {};
  for (int64_t i = 0; i < n; ++i) some[i] = p[i];
  return load_lanes<float>(some);
}
template <class T>
WEFT_INLINE void store_some(T* p, Vec<float> v, int64_t n) {
  if (n >= kFloats) return store_whole(p, v);
  T some[kFloats];
  store_whole(some, v);
  for (int64_t i = 0; i < n; ++i) p[i] = some[i];
}

inline Vec<float> activate(Activation activation, Vec<float> v) {
  switch (activation) {
    case Activation::relu:
      return relu(v);
    case Activation::gelu:
      return gelu(v);
    case Activation::gelu_tanh:
      return gelu_tanh(v);
    case Activation::silu:
    case Activation::silu_mul:
      return silu(v);
    case Activation::none:
      break;
  }
  return v;
}

// f(c, n) for each vector of a row of C, of which n elements are there: a constant for all but the
// last, so that the loop over whole vectors has no branches.
template <class F>
inline void for_vectors(int64_t C, F&& f) {
  int64_t c = 0;
  for (; c + kFloats <= C; c += kFloats) f(c, std::integral_constant<int64_t, kFloats>{});
  if (c < C) f(c, C - c);
}

// t of a row, and zeros up to a whole vector.
inline void transform_row(const Rows& x, int64_t n, int64_t C, Activation activation,
                          const Smoothing& smoothing, float* t) {
  with_float(x.dtype, [&](auto type) {
    using T = decltype(type);
    const T* p = reinterpret_cast<const T*>(x.row(n));
    if (activation == Activation::none && !smoothing.shift && !smoothing.smooth)
      return for_vectors(
          C, [=](int64_t c, auto count) { store_vec<float>(t + c, load_some(p + c, count)); });
    for_vectors(C, [&](int64_t c, auto count) {
      Vec<float> v = activate(activation, load_some(p + c, count));
      if (activation == Activation::silu_mul) v *= load_some(p + C + c, count);
      if (smoothing.shift) v -= load_some(smoothing.shift + c, count);
      if (smoothing.smooth) v /= load_some(smoothing.smooth + c, count);
      store_vec<float>(t + c, v);
    });
    for (int64_t c = C; c < row_floats(C); ++c) t[c] = 0;
  });
}

inline Extremes extremes_of(const float* t, int64_t n, bool symmetric) {
  Vec<float> min = {}, max = {}, magnitude = {};
  if (symmetric)
    for_vectors(n, [&](int64_t i, auto count) {
      magnitude = magnitude_max(magnitude, load_some(t + i, count));
    });
  else
    for_vectors(n, [&](int64_t i, auto count) {
      const Vec<float> v = load_some(t + i, count);
      magnitude = magnitude_max(magnitude, v);
      min = vmin(v, min);
      max = vmax(v, max);
    });
  Extremes all;
  for (int i = 0; i < kFloats; ++i) all.add({min[i], max[i], magnitude[i]});
  return all;
}

// q of n elements; to nearest, ties to even. NaN becomes the zero point.
inline void quantize_span(const float* t, int64_t n, Scale s, int8_t* q) {
  const Vec<float> inverse = broadcast(s.lost() ? 0.0f : 1 / s.scale),
                   least = broadcast(static_cast<float>(-128 - s.zero_point)),
                   most = broadcast(static_cast<float>(127 - s.zero_point));
  const Vec<int32_t> zero = broadcast<int32_t>(s.zero_point);
  for_vectors(n, [=](int64_t i, auto count) {
    Vec<float> v = load_some(t + i, count) * inverse;
    v = v == v ? v : Vec<float>{};
    v = vmin(vmax(v, least), most);
    store_bytes(q + i, round_to_int(v) + zero, count);
  });
}

}  // namespace weft::int8::cpu::WEFT_CPU_LEVEL
