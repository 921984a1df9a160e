// Vectors of one ISA level. Included by sources that are compiled once per level; everything stands
// in that level's namespace.
//
// Arithmetic is written on the compiler's own vector types (a * b + c becomes an FMA, a < b ? a : b
// a blend), so one source serves SSE2, AVX2 and AVX-512. Only what those types cannot say (16-bit
// conversions, masked and streaming access) is intrinsics, here.
//
// A row is walked in pairs: two vectors of accumulators, kPair elements. The order of a pair's
// lanes belongs to the row's type X, and is free to choose because the kernels that use it only add
// up lanes and combine equal positions:
//
//   X = bf16:   memory  e0 o0 e1 o1 e2 o2 …      lo = e0 e1 e2 …   (bits << 16)
//               one register of 16-bit pairs      hi = o0 o1 o2 …   (bits & 0xffff0000)
//   others:     memory  a0 a1 … b0 b1 …           lo = a0 a1 …      hi = b0 b1 …
//
// so widening bf16 costs one operation a vector instead of two, and no shuffle.
#pragma once

#ifndef WEFT_CPU_LEVEL
#error "compile this file once per ISA level, with -DWEFT_CPU_LEVEL=<level>"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace weft::cpu::WEFT_CPU_LEVEL {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class T, int kBytes = kVecBytes>
struct VecOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;

// The same, anywhere in memory and over any type. Compilers turn access through it into one
// instruction, but memcpy often into a copy by way of the stack.
template <class T>
struct AnywhereOf {
  typedef T type __attribute__((vector_size(kVecBytes), aligned(1), may_alias));
};
template <class T>
inline Vec<T> load_vec(const void* p) {
  return *static_cast<const typename AnywhereOf<T>::type*>(p);
}
template <class T>
inline void store_vec(void* p, Vec<T> v) {
  *static_cast<typename AnywhereOf<T>::type*>(p) = v;
}

template <class A>
constexpr int kLanes = kVecBytes / sizeof(A);

template <class A>
inline Vec<A> broadcast(A value) {
  return value - Vec<A>{};  // x - 0, not x + 0: keeps -0
}
template <class V>
inline V vmin(V a, V b) {
  return a < b ? a : b;
}
template <class V>
inline V vmax(V a, V b) {
  return a > b ? a : b;
}

// The larger of most >= 0 and |v|; a NaN or infinity, once in, stays. Magnitudes order like the
// integers that their bits spell.
inline Vec<float> magnitude_max(Vec<float> most, Vec<float> v) {
  const Vec<int32_t> x = reinterpret_cast<Vec<int32_t>>(most),
                     y = reinterpret_cast<Vec<int32_t>>(v) & 0x7fffffff;
  return reinterpret_cast<Vec<float>>(x > y ? x : y);
}
inline Vec<double> magnitude_max(Vec<double> most, Vec<double> v) {
  const Vec<int64_t> x = reinterpret_cast<Vec<int64_t>>(most),
                     y = reinterpret_cast<Vec<int64_t>>(v) & 0x7fffffffffffffff;
  return reinterpret_cast<Vec<double>>(x > y ? x : y);
}

// Lanes are combined as a binary tree, half with half: log2(lanes) roundings, and the same order at
// every call.
template <class A, int kBytes, int... I, class Op>
inline A reduce_halves(typename VecOf<A, kBytes>::type v, std::integer_sequence<int, I...>, Op op) {
  constexpr int n = sizeof...(I);
  const auto half =
      op(__builtin_shufflevector(v, v, I...), __builtin_shufflevector(v, v, (I + n)...));
  if constexpr (n > 2)
    return reduce_halves<A, kBytes / 2>(half, std::make_integer_sequence<int, n / 2>{}, op);
  else
    return op(half[0], half[n - 1]);
}
template <class A, class Op>
inline A reduce(Vec<A> v, Op op) {
  if constexpr (kLanes<A> == 2)
    return op(v[0], v[1]);
  else
    return reduce_halves<A, kVecBytes>(v, std::make_integer_sequence<int, kLanes<A> / 2>{}, op);
}

template <class A>
struct Pair {
  Vec<A> lo, hi;
};
template <class A>
inline Pair<A> operator+(Pair<A> a, Pair<A> b) {
  return {a.lo + b.lo, a.hi + b.hi};
}
template <class A>
inline Pair<A> operator-(Pair<A> a, Pair<A> b) {
  return {a.lo - b.lo, a.hi - b.hi};
}
template <class A>
inline Pair<A> operator*(Pair<A> a, Pair<A> b) {
  return {a.lo * b.lo, a.hi * b.hi};
}
template <class A>
inline Pair<A> operator/(Pair<A> a, Pair<A> b) {
  return {a.lo / b.lo, a.hi / b.hi};
}
// a * b + c, rounded once where the ISA can, and in the same way wherever it is written: elsewhere
// the compiler decides whether to contract.
inline Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
inline Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}
template <class A>
inline Pair<A> multiply_add(Pair<A> a, Pair<A> b, Pair<A> c) {
  return {multiply_add(a.lo, b.lo, c.lo), multiply_add(a.hi, b.hi, c.hi)};
}

template <class A>
inline Pair<A> both(A value) {
  return {broadcast<A>(value), broadcast<A>(value)};
}
template <class A>
inline Pair<A> pair_min(Pair<A> a, Pair<A> b) {
  return {vmin(a.lo, b.lo), vmin(a.hi, b.hi)};
}
template <class A>
inline Pair<A> pair_max(Pair<A> a, Pair<A> b) {
  return {vmax(a.lo, b.lo), vmax(a.hi, b.hi)};
}
template <class A>
inline Pair<A> pair_magnitude_max(Pair<A> most, Pair<A> v) {
  return {magnitude_max(most.lo, v.lo), magnitude_max(most.hi, v.hi)};
}
template <class A>
inline A pair_sum(Pair<A> p) {
  return reduce<A>(p.lo + p.hi, [](auto a, auto b) { return a + b; });
}

// A pair of 16-bit floats as it lies in memory.
using Raw = Vec<uint32_t>;

// How much of a pair lies inside the row: all of it, or the first n elements.
struct Full {};
struct Tail {
  int n;
};

// ---- bits

inline Vec<uint32_t> as_bits(Vec<float> v) { return reinterpret_cast<Vec<uint32_t>>(v); }
inline Vec<float> as_float(Vec<uint32_t> v) { return reinterpret_cast<Vec<float>>(v); }

// float -> bf16 by round to nearest even, left in the upper half of each lane. NaN stays NaN
// (quieted).
inline Vec<uint32_t> round_to_bf16(Vec<float> v) {
  const Vec<uint32_t> bits = as_bits(v);
  const Vec<uint32_t> rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return v == v ? rounded : (bits | 0x400000u);
}

inline float widen(bf16 v) {
  const uint32_t bits = uint32_t{v.bits} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float widen(f16 v) {
  const uint32_t sign = uint32_t{v.bits & 0x8000u} << 16, exponent = (v.bits >> 10) & 31u,
                 mantissa = v.bits & 1023u;
  uint32_t bits;
  float f;
  if (exponent == 0) {  // zero or subnormal: mantissa · 2^-24 is exact in float
    f = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  } else {
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
  }
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(int8_t v) { return v; }

inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, float& out) { out = static_cast<float>(v); }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, double& out) { out = v; }
inline void narrow(float v, bf16& out) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  out.bits = static_cast<uint16_t>(
      (v == v ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u) >> 16);
}
inline void narrow(float v, f16& out) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu, half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude <
             0x38800000u) {  // below 2^-14: adding 0.5 lets the FPU round at the right bit
    float f;
    std::memcpy(&f, &magnitude, 4);
    f += 0.5f;
    std::memcpy(&half, &f, 4);
    half -= 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}
inline void narrow(double v, bf16& out) { narrow(static_cast<float>(v), out); }
inline void narrow(double v, f16& out) { narrow(static_cast<float>(v), out); }

// ---- natural order: kPair consecutive elements

template <class A>
constexpr int kPairOf = 2 * kLanes<A>;

// Accumulators as they stand.
template <class A>
inline Pair<A> load_pair(const A* p) {
  return {load_vec<A>(p), load_vec<A>(p + kLanes<A>)};
}
template <class A>
inline void store_pair(A* p, Pair<A> pair) {
  store_vec<A>(p, pair.lo);
  store_vec<A>(p + kLanes<A>, pair.hi);
}

// Where the ISA has no instruction: element by element (the compiler unrolls, and for generic that
// is all there is).
template <class A, class U>
inline Pair<A> load_natural(const U* p) {
  A lane[kPairOf<A>];
  for (int i = 0; i < kPairOf<A>; ++i) lane[i] = static_cast<A>(widen(p[i]));
  return load_pair(lane);
}
template <>
inline Pair<float> load_natural<float, float>(const float* p) {
  return load_pair(p);
}
template <>
inline Pair<double> load_natural<double, double>(const double* p) {
  return load_pair(p);
}
#if defined(__F16C__)
template <>
inline Pair<float> load_natural<float, f16>(const f16* p) {
#if defined(__AVX512F__)
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))),
          _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)))};
#else
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
#endif
}
#endif

// One vector of consecutive elements, widened or narrowed.
using HalfLanes = VecOf<uint16_t, kVecBytes / 2>::type;  // one 16-bit value per 32-bit lane
using QuarterLanes = VecOf<uint8_t, kVecBytes / 4>::type;

template <class A, class U>
inline Vec<A> load_lanes(const U* p) {
  if constexpr (std::is_same_v<A, U>) {
    return load_vec<A>(p);
#if defined(__AVX512F__)  // compilers convert these vectors by halves, or one by one
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, bf16>) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<Vec<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#endif
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, bf16>) {
    HalfLanes half;
    std::memcpy(&half, p, sizeof half);
    return as_float(__builtin_convertvector(half, Vec<uint32_t>) << 16);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, int8_t>) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, int8_t>) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, int8_t>) {
    typename VecOf<int8_t, kVecBytes / 4>::type quarter;
    std::memcpy(&quarter, p, sizeof quarter);
    return __builtin_convertvector(__builtin_convertvector(quarter, Vec<int32_t>), Vec<float>);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, f16>) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, f16>) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  } else {
    Vec<A> v;
    for (int i = 0; i < kLanes<A>; ++i) v[i] = static_cast<A>(widen(p[i]));
    return v;
  }
}
template <class A, class U>
inline void store_lanes(U* p, Vec<A> v) {
  if constexpr (std::is_same_v<A, U>) {
    store_vec<A>(p, v);
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, bf16>) {
    const HalfLanes half = __builtin_convertvector(round_to_bf16(v) >> 16, HalfLanes);
    std::memcpy(p, &half, sizeof half);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, f16>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, f16>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  } else {
    for (int i = 0; i < kLanes<A>; ++i) narrow(v[i], p[i]);
  }
}

// Two vectors of consecutive floats as one of bf16, in order; and two of bf16, a and b, as a0 b0 a1 …
#if defined(__AVX512BF16__)
inline Raw to_bf16(Vec<float> first, Vec<float> second) {
  return (Raw)_mm512_cvtne2ps_pbh(second, first);
}
template <int... I>
inline void zip_bf16(Vec<float>& first, Vec<float>& second, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  const auto a = reinterpret_cast<Vec<uint16_t>>(first),
             b = reinterpret_cast<Vec<uint16_t>>(second);
  first = reinterpret_cast<Vec<float>>(__builtin_shufflevector(a, b, (I / 2 + (I % 2) * n)...));
  second =
      reinterpret_cast<Vec<float>>(__builtin_shufflevector(a, b, ((I + n) / 2 + (I % 2) * n)...));
}
inline void zip_bf16(Vec<float>& first, Vec<float>& second) {
  zip_bf16(first, second, std::make_integer_sequence<int, kLanes<uint16_t>>{});
}
#endif

// One vector of bits to memory, past the caches where asked: p is aligned to kVecBytes then.
inline void write(void* p, Vec<uint32_t> v, bool stream) {
#if defined(__AVX512F__)
  if (stream) return _mm512_stream_si512(static_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  if (stream) return _mm256_stream_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#elif defined(__x86_64__)
  if (stream) return _mm_stream_si128(static_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#endif
  (void)stream;
  store_vec<uint32_t>(p, v);
}

template <class A, class U>
inline void store_natural(U* p, Pair<A> pair, bool stream) {
  if constexpr (std::is_same_v<A, U>) {
    write(p, reinterpret_cast<Vec<uint32_t>>(pair.lo), stream);
    write(p + kLanes<A>, reinterpret_cast<Vec<uint32_t>>(pair.hi), stream);
#if defined(__F16C__)
  } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, f16>) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if defined(__AVX512F__)
    const __m512i lo = _mm512_castsi256_si512(_mm512_cvtps_ph(pair.lo, kNearest));
    write(p,
          reinterpret_cast<Vec<uint32_t>>(
              _mm512_inserti64x4(lo, _mm512_cvtps_ph(pair.hi, kNearest), 1)),
          stream);
#else
    const __m256i lo = _mm256_castsi128_si256(_mm256_cvtps_ph(pair.lo, kNearest));
    write(p,
          reinterpret_cast<Vec<uint32_t>>(
              _mm256_inserti128_si256(lo, _mm256_cvtps_ph(pair.hi, kNearest), 1)),
          stream);
#endif
#endif
  } else {
    A lane[kPairOf<A>];
    store_pair(lane, pair);
    for (int i = 0; i < kPairOf<A>; ++i) narrow(lane[i], p[i]);
  }
}

// ---- the order of X

template <int... I>
inline Pair<float> split_even_odd(Pair<float> p, std::integer_sequence<int, I...>) {
  return {__builtin_shufflevector(p.lo, p.hi, (2 * I)...),
          __builtin_shufflevector(p.lo, p.hi, (2 * I + 1)...)};
}
template <int... I>
inline Pair<float> merge_even_odd(Pair<float> p, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  return {__builtin_shufflevector(p.lo, p.hi, (I / 2 + (I % 2) * n)...),
          __builtin_shufflevector(p.lo, p.hi, ((I + n) / 2 + (I % 2) * n)...)};
}
using FloatLanes = std::make_integer_sequence<int, kLanes<float>>;

// Access to tensors of type U by the lanes of rows of type X.
template <class X>
struct Lanes {
  using A = acc_t<X>;
  static constexpr int kPair = kPairOf<A>;
  static constexpr bool kEvenOdd = std::is_same_v<X, bf16>;

  template <class U>
  static Pair<A> load(const U* p, Full = {}) {
    if constexpr (kEvenOdd && std::is_same_v<U, bf16>) {
      const Vec<uint32_t> raw = load_vec<uint32_t>(p);
      return {as_float(raw << 16), as_float(raw & 0xffff0000u)};
    } else if constexpr (kEvenOdd) {
      return split_even_odd(load_natural<A>(p), FloatLanes{});
    } else {
      return load_natural<A>(p);
    }
  }

  template <class U>
  static Pair<A> load(const U* p, Tail tail) {  // zeros beyond the row
    U whole[kPair] = {};
    copy(whole, p, tail.n);
    return load(whole);
  }

  // Whether the ISA multiplies and adds X's as they lie in memory, two to a lane: exact products,
  // float sums, subnormals taken for zeros.
#if defined(__AVX512BF16__)
  static constexpr bool kDot = kEvenOdd;
  static Vec<float> dot(Raw a, Raw b, Vec<float> sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
#else
  static constexpr bool kDot = false;
#endif
  static Raw load_raw(const X* p, Full) { return load_vec<uint32_t>(p); }
  static Raw load_raw(const X* p, Tail tail) {
    X whole[kPair] = {};
    copy(whole, p, tail.n);
    return load_raw(whole, Full{});
  }
  static void store_raw(X* p, Raw v, Full, bool stream = false) { write(p, v, stream); }
  static void store_raw(X* p, Raw v, Tail tail, bool = false) {
    X whole[kPair];
    store_raw(whole, v, Full{});
    copy(p, whole, tail.n);
  }

  // Streaming needs p aligned to kVecBytes; whoever asks for it has looked.
  template <class U>
  static void store(U* p, Pair<A> v, Full = {}, bool stream = false) {
    if constexpr (kEvenOdd && std::is_same_v<U, bf16>) {
      store_raw(p, interleave_bf16(v), Full{}, stream);
    } else if constexpr (kEvenOdd) {
      store_natural(p, merge_even_odd(v, FloatLanes{}), stream);
    } else {
      store_natural(p, v, stream);
    }
  }

  // v as a U holds it.
  template <class U>
  static Pair<A> rounded(Pair<A> v) {
    if constexpr (std::is_same_v<U, A>) {
      return v;
    } else if constexpr (kEvenOdd && std::is_same_v<U, bf16>) {
      const Raw raw = interleave_bf16(v);
      return {as_float(raw << 16), as_float(raw & 0xffff0000u)};
#if defined(__AVX512F__)
    } else if constexpr (std::is_same_v<A, float> && std::is_same_v<U, f16>) {
      constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
      return {_mm512_cvtph_ps(_mm512_cvtps_ph(v.lo, kNearest)),
              _mm512_cvtph_ps(_mm512_cvtps_ph(v.hi, kNearest))};
#endif
    } else {
      U whole[kPair];
      store(whole, v);
      return load(whole);
    }
  }

  template <class U>
  static void store(U* p, Pair<A> v, Tail tail, bool = false) {
    U whole[kPair];
    store(whole, v);
    copy(p, whole, tail.n);
  }

  // round(v · scale) + zero, saturated to int8, for |v · scale| below 2^14; to nearest even. Adding
  // 1.5 · 2^23 leaves the rounded integer in the low bits.
  template <class Part>
  static void store_int8(int8_t* p, Pair<A> v, Pair<A> scale, int32_t zero, Part part,
                         [[maybe_unused]] bool stream = false) {
    alignas(kVecBytes) int8_t whole[kPair];
#if defined(__AVX512BW__)
    if constexpr (std::is_same_v<A, float>) {
      const Pair<A> magic = multiply_add(v, scale, both<A>(0x1.8p23f));
      const Vec<uint32_t> lo = as_bits(magic.lo), hi = as_bits(magic.hi);
      __m512i words;  // the low halves, in memory's order
      if constexpr (kEvenOdd) {
        words = reinterpret_cast<__m512i>((lo & 0xffffu) | (hi << 16));
      } else {
        words = _mm512_permutex2var_epi16(reinterpret_cast<__m512i>(lo), even_words(),
                                          reinterpret_cast<__m512i>(hi));
      }
      words = _mm512_add_epi16(words, _mm512_set1_epi16(static_cast<int16_t>(zero)));
      const __m256i bytes = _mm512_cvtsepi16_epi8(words);
      if constexpr (std::is_same_v<Part, Full>) {
        if (stream) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bytes);
        return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(whole), bytes);
      return copy(p, whole, kept(part));
    }
#endif
    const A least = static_cast<A>(-128 - zero), most = static_cast<A>(127 - zero);
    v = v * scale;
    v = pair_min(pair_max(v, both<A>(least)), both<A>(most));
    if constexpr (std::is_same_v<A, double>) {
      for (int i = 0; i < kLanes<A>; ++i) {
        whole[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyint(v.lo[i])) + zero);
        whole[i + kLanes<A>] =
            static_cast<int8_t>(static_cast<int32_t>(std::nearbyint(v.hi[i])) + zero);
      }
    } else {
      const uint32_t offset = static_cast<uint32_t>(zero);
      const Vec<uint32_t> lo = as_bits(v.lo + 0x1.8p23f) + offset,
                          hi = as_bits(v.hi + 0x1.8p23f) + offset;
      if constexpr (kEvenOdd) {  // two 8-bit values make one 16-bit lane
        const HalfLanes pairs = __builtin_convertvector((lo & 255u) | (hi << 8), HalfLanes);
        std::memcpy(whole, &pairs, sizeof pairs);
      } else {
        const QuarterLanes a = __builtin_convertvector(lo, QuarterLanes),
                           b = __builtin_convertvector(hi, QuarterLanes);
        std::memcpy(whole, &a, sizeof a);
        std::memcpy(whole + sizeof a, &b, sizeof b);
      }
    }
    copy(p, whole, kept(part));
  }

  // v with zeros in the lanes beyond the row, whatever stood there.
  static Pair<A> clear_beyond(Pair<A> v, Full) { return v; }
  static Pair<A> clear_beyond(Pair<A> v, Tail tail) {
    A ones[kPair];
    for (int i = 0; i < kPair; ++i) ones[i] = i < tail.n ? A{1} : A{0};
    const Pair<A> inside = load(ones);
    return {inside.lo != 0 ? v.lo : Vec<A>{}, inside.hi != 0 ? v.hi : Vec<A>{}};
  }

  static Raw interleave_bf16(Pair<float> v) {
#if defined(__AVX512BF16__)
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(v.hi, v.lo);  // lo's 16 values, then hi's
    alignas(64) static constexpr uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return reinterpret_cast<Raw>(_mm512_permutexvar_epi16(_mm512_load_si512(order), halves));
#else
    return (round_to_bf16(v.lo) >> 16) | (round_to_bf16(v.hi) & 0xffff0000u);
#endif
  }

 private:
  static constexpr int kept(Full) { return kPair; }
  static constexpr int kept(Tail tail) { return tail.n; }

  template <class U>
  static void copy(U* to, const U* from, int n) {
    for (int i = 0; i < n; ++i) to[i] = from[i];
  }

#if defined(__AVX512BW__)
  static __m512i even_words() {
    alignas(64) static constexpr uint16_t order[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                       22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
                                                       44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    return _mm512_load_si512(order);
  }
#endif
};

// Streaming stores are weakly ordered: a task that used them ends with this, before other threads
// are told that it is done.
inline void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Calls f(i, part) for the pairs of columns [begin, end) of a row of X; only the last may be a
// Tail.
template <class X, class F>
inline void for_pairs(int64_t begin, int64_t end, F&& f) {
  constexpr int step = Lanes<X>::kPair;
  int64_t i = begin;
  for (; i + step <= end; i += step) f(i, Full{});
  if (i < end) f(i, Tail{static_cast<int>(end - i)});
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
