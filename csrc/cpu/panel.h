// Products of matrices from packed panels: the one matrix kernel of the CPU, under attention and
// the linear layers.
//
//   C[M×N] = diag(alpha) · C + A[M×depth] · B[depth×N]
//
// A lies in rows, its elements are broadcast; B is packed in panels of kPanel columns, so that what
// one step of the depth needs is consecutive; a tile of kTileRows × kPanel results stays in
// registers over the whole depth:
//
//   elements   a step multiplies             kTileRows × kPanel (AVX-512, AVX2, SSE2)
//   bf16       2 of the depth (dot)          6 × 64          where the ISA has AVX512_BF16
//   float      1                             6 × 64, 6 × 16, 6 × 8
//   double     1                             6 × 32, 6 × 8, 6 × 4
//
// With 24 of 32 registers (12 of 16) as accumulators a step issues 24 multiplications, 4 loads of B
// and 6 broadcasts; every accumulator is touched once a step, which hides the latency.
//
//   packed B:   panel n / kPanel,  then  step k / kStep,  then  column n % kPanel,  then  k % kStep
#pragma once

#include "core/divide.h"
#include "cpu/vec.h"

namespace weft::cpu::WEFT_CPU_LEVEL {

template <class In>
struct Panel {
  using Acc = acc_t<In>;
#if defined(__AVX512F__)
  static constexpr int kVectors = 4;
#else
  static constexpr int kVectors = 2;
#endif
  static constexpr int kTileRows = 6;
  static constexpr int kStep = std::is_same_v<In, bf16> ? 2 : 1;  // of the depth, at once
  static constexpr int kPanel = kVectors * kLanes<Acc>;           // columns
  static constexpr int kLane = kLanes<Acc>;

  static constexpr int64_t steps(int64_t depth) { return ceil_div(depth, kStep); }
  // Elements of one packed panel.
  static constexpr int64_t elements(int64_t depth) { return steps(depth) * kStep * kPanel; }

  // One step of the depth of one element of A, in all lanes.
  static Vec<Acc> spread(const In* a) {
    if constexpr (kStep == 2) {
      int32_t both;
      std::memcpy(&both, a, 4);
      return reinterpret_cast<Vec<Acc>>(broadcast<int32_t>(both));
    } else {
      return broadcast<Acc>(*a);
    }
  }
  static Vec<Acc> multiply(Vec<Acc> a, Vec<Acc> b, Vec<Acc> sum) {
#if defined(__AVX512BF16__)
    if constexpr (kStep == 2) return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
    return multiply_add(a, b, sum);
  }
};

// One tile: kRows rows of A (lda elements apart) times one panel, from its first step on. C gets the
// product where alpha is null, or alpha[row] · C + product.
template <class In, int kRows>
inline void panel_tile(int64_t steps, const In* a, int64_t lda, const In* panel, acc_t<In>* c,
                       int64_t ldc, const acc_t<In>* alpha) {
  using P = Panel<In>;
  using V = Vec<acc_t<In>>;
  V sum[kRows][P::kVectors] = {};
  for (int64_t k = 0; k < steps; ++k) {
    V b[P::kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < P::kVectors; ++j)
      b[j] = load_vec<acc_t<In>>(panel + (k * P::kPanel + j * P::kLane) * P::kStep);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const V x = P::spread(a + i * lda + k * P::kStep);
#pragma GCC unroll 8
      for (int j = 0; j < P::kVectors; ++j) sum[i][j] = P::multiply(x, b[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < P::kVectors; ++j) {
      auto* to = c + i * ldc + j * P::kLane;
      V value = sum[i][j];
      if (alpha)
        value = multiply_add(broadcast<acc_t<In>>(alpha[i]), load_vec<acc_t<In>>(to), value);
      store_vec<acc_t<In>>(to, value);
    }
}

// The same for 1 … kTileRows rows.
template <class In, int kRows = Panel<In>::kTileRows>
inline void panel_rows(int64_t rows, int64_t steps, const In* a, int64_t lda, const In* panel,
                       acc_t<In>* c, int64_t ldc, const acc_t<In>* alpha) {
  if (rows == kRows) return panel_tile<In, kRows>(steps, a, lda, panel, c, ldc, alpha);
  if constexpr (kRows > 1) panel_rows<In, kRows - 1>(rows, steps, a, lda, panel, c, ldc, alpha);
}

// ---- packing

// A vector put together from 16 bytes of every fourth (float) or second (double) row of `stride`
// elements.
template <class A>
inline Vec<A> gather_pieces(const A* p, int64_t stride) {
  [[maybe_unused]] const int64_t step = stride * (16 / static_cast<int>(sizeof(A)));
#if defined(__AVX512F__)
  const auto piece = [&](int i) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(p + i * step));
  };
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(piece(0)), piece(1), 1);
  const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(piece(2)), piece(3), 1);
  return reinterpret_cast<Vec<A>>(_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1));
#elif defined(__AVX__)
  const auto piece = [&](int i) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(p + i * step));
  };
  return reinterpret_cast<Vec<A>>(
      _mm256_insertf128_ps(_mm256_castps128_ps256(piece(0)), piece(1), 1));
#else
  return load_vec<A>(p);
#endif
}
// Of every 16 bytes, the first halves of a and b interleaved by kSize elements, or the second halves.
template <class A, int kSize, bool kSecond, int... I>
inline Vec<A> interleave(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I), piece = 16 / sizeof(A);
  return __builtin_shufflevector(
      a, b,
      (I / piece * piece + (kSecond ? piece / 2 : 0) + I % piece / (2 * kSize) * kSize + I % kSize +
       (I / kSize % 2) * n)...);
}
template <class A, int kSize, bool kSecond>
inline Vec<A> interleave(Vec<A> a, Vec<A> b) {
  return interleave<A, kSize, kSecond>(a, b, std::make_integer_sequence<int, kLanes<A>>{});
}

// Transposes 16 bytes of as many rows as a vector has lanes: f(i, v) gets column i. The pieces are put
// in place as they are loaded, which leaves shuffles within 16 bytes.
template <class A, class F>
inline void transpose_pieces(const A* p, int64_t stride, F&& f) {
  constexpr int piece = 16 / sizeof(A);
  Vec<A> v[piece];
#pragma GCC unroll 4
  for (int i = 0; i < piece; ++i) v[i] = gather_pieces<A>(p + i * stride, stride);
  if constexpr (piece == 2) {
    f(0, interleave<A, 1, false>(v[0], v[1]));
    f(1, interleave<A, 1, true>(v[0], v[1]));
  } else {
    const Vec<A> a = interleave<A, 1, false>(v[0], v[1]), b = interleave<A, 1, true>(v[0], v[1]),
                 c = interleave<A, 1, false>(v[2], v[3]), d = interleave<A, 1, true>(v[2], v[3]);
    f(0, interleave<A, 2, false>(a, c));
    f(1, interleave<A, 2, true>(a, c));
    f(2, interleave<A, 2, false>(b, d));
    f(3, interleave<A, 2, true>(b, d));
  }
}

// kWide elements of a row of T as a vector of In, zeros behind the first n. `scale` is that of int8.
template <class In, class T>
struct Packed {
  using A = acc_t<In>;
  static constexpr int kWide = kLanes<A> * Panel<In>::kStep;

  static Vec<A> load(const T* p, int64_t n, float scale) {
    if (n >= kWide) return whole(p, scale);
    T some[kWide] = {};
    for (int64_t i = 0; i < n; ++i) some[i] = p[i];
    return whole(some, scale);
  }

 private:
  static Vec<A> whole(const T* p, [[maybe_unused]] float scale) {
    if constexpr (std::is_same_v<T, In>) {
      return load_vec<A>(p);
    } else if constexpr (std::is_same_v<In, bf16>) {
      return reinterpret_cast<Vec<A>>(to_bf16(load_lanes<A>(p) * broadcast(scale),
                                              load_lanes<A>(p + kLanes<A>) * broadcast(scale)));
    } else if constexpr (std::is_same_v<T, int8_t>) {
      return load_lanes<A>(p) * broadcast(static_cast<A>(scale));
    } else {
      return load_lanes<A>(p);
    }
  }
};

// A row to be packed, and what its int8 values stand for.
template <class T>
struct PackRow {
  const T* data;
  float scale;
};

// Rows become columns: panel[k][n] = row(n)[k] for n < count (at most kPanel), zeros behind.
template <class In, class T, class Row>
inline void pack_columns(int64_t count, int64_t depth, In* panel, const Row& row) {
  using P = Panel<In>;
  using A = acc_t<In>;
  using Load = Packed<In, T>;
  constexpr int piece = 16 / sizeof(A);
  for (int n = 0; n < P::kPanel; n += P::kLane) {
    const int64_t rows = count - n < P::kLane ? count - n : P::kLane;
    PackRow<T> source[P::kLane];
    for (int64_t i = 0; i < rows; ++i) source[i] = row(n + i);
    for (int64_t k = 0; k < depth; k += Load::kWide) {
      // Whole cache lines first, as rows may lie far apart, in the same few sets of the cache.
      A block[P::kLane * P::kLane];
      if (rows == P::kLane) {
#pragma GCC unroll 16
        for (int i = 0; i < P::kLane; ++i)
          store_vec<A>(block + i * P::kLane,
                       Load::load(source[i].data + k, depth - k, source[i].scale));
      } else {
        for (int i = 0; i < P::kLane; ++i)
          store_vec<A>(
              block + i * P::kLane,
              i < rows ? Load::load(source[i].data + k, depth - k, source[i].scale) : Vec<A>{});
      }
      const int64_t first = k / P::kStep, steps = P::steps(depth) - first;
#pragma GCC unroll 8
      for (int j = 0; j < P::kLane; j += piece)
        transpose_pieces<A>(block + j, P::kLane, [&](int i, Vec<A> v) {
          if (j + i < steps) store_vec<A>(panel + ((first + j + i) * P::kPanel + n) * P::kStep, v);
        });
    }
  }
}

// Rows stay rows: panel[k][n] = row(k)[n], zeros behind `depth` up to a whole step, and behind
// `columns` up to whole panels, which lie panel_stride elements apart.
template <class In, class T, class Row>
inline void pack_rows(int64_t depth, int64_t columns, In* panels, int64_t panel_stride,
                      const Row& row) {
  using P = Panel<In>;
  using A = acc_t<In>;
  using Load = Packed<In, T>;
  for (int64_t k = 0; k < depth; k += P::kStep) {
    const PackRow<T> first = row(k);
    In* step = panels + k * P::kPanel;
    for (int64_t n = 0; n < columns; n += P::kPanel, step += panel_stride)
      if constexpr (P::kStep == 1) {
#pragma GCC unroll 8
        for (int j = 0; j < P::kPanel; j += P::kLane)
          store_vec<A>(step + j, n + j < columns
                                     ? Load::load(first.data + n + j, columns - n - j, first.scale)
                                     : Vec<A>{});
      } else {
        const bool two = k + 1 < depth;
        const PackRow<T> second = two ? row(k + 1) : first;
#pragma GCC unroll 8
        for (int j = 0; j < P::kPanel; j += Load::kWide) {
          Vec<A> a = {}, b = {};
          const int64_t left = columns - n - j;
          if (left > 0) a = Load::load(first.data + n + j, left, first.scale);
          if (left > 0 && two) b = Load::load(second.data + n + j, left, second.scale);
          zip_bf16(a, b);
          store_vec<A>(step + j * 2, a);
          store_vec<A>(step + j * 2 + Load::kWide, b);
        }
      }
  }
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
