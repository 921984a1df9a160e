// Products of 8-bit integers from packed panels, exact: the matrix kernel under the INT8 layers.
//
//   C[M×64] = init + A[M×depth] · B[depth×64]              A signed, B unsigned, C int32
//
// B is packed in panels of 64 columns, the same on every level, so that a packed weight may go from
// one to another: a step of the depth is 256 bytes, those of column n at 4 n:
//
//   bytes     4 of the depth          k k+1 k+2 k+3
//   nibbles   8 of the depth          k k+1 k+2 k+3 in the low halves, k+4 … k+7 in the high ones
//
// Weights are signed: packed, they have 128 (nibbles: 8) more, and `init` takes that back, being
// -128 · Σ A of each row. The sums wrap at 2^32, so only the true result has to fit.
//
//   elements       a tile holds      a vector of B and a row of A take
//   AVX512_VNNI    6 × 64            one VPDPBUSD: 64 products added to 16 sums
//   AVX-512        5 × 64            two VPMADDWD and additions, of bytes widened to 16 bits: what
//   AVX2, SSE2     4 × 16, 4 × 8     multiplies bytes (VPMADDUBSW) saturates at 16 bits
#pragma once

#include "cpu/vec.h"

namespace weft::cpu::WEFT_CPU_LEVEL {

constexpr int kBytePanel = 64;  // columns
constexpr int kByteStep = 256;  // bytes
constexpr int kByteVectors =    // of B, at once
    kVecBytes == 64 ? 4 : 2;
constexpr int kByteColumns = kByteVectors * kLanes<int32_t>;
#if defined(__AVX512VNNI__)
constexpr int kByteTileRows = 6;
#elif defined(__AVX512F__)
constexpr int kByteTileRows = 5;
#else
constexpr int kByteTileRows = 4;
#endif

// Four bytes of the depth for each 32-bit lane, as the ISA multiplies them.
#if defined(__AVX512VNNI__)
struct Bytes {
  Vec<int32_t> all;
};
inline Bytes signed_bytes(Vec<int32_t> v) { return {v}; }
inline Bytes unsigned_bytes(Vec<int32_t> v) { return {v}; }
inline Vec<int32_t> dot_bytes(Bytes a, Bytes b, Vec<int32_t> sum) {
  return reinterpret_cast<Vec<int32_t>>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum),
                                                            reinterpret_cast<__m512i>(b.all),
                                                            reinterpret_cast<__m512i>(a.all)));
}
#else
struct Bytes {
  Vec<int32_t> even, odd;  // 16 bits each
};
inline Bytes signed_bytes(Vec<int32_t> v) {
  const auto words = reinterpret_cast<Vec<int16_t>>(v);
  return {reinterpret_cast<Vec<int32_t>>((words << 8) >> 8),
          reinterpret_cast<Vec<int32_t>>(words >> 8)};
}
inline Bytes unsigned_bytes(Vec<int32_t> v) { return {v & 0x00ff00ff, (v >> 8) & 0x00ff00ff}; }
// The sums of two products of 16 bits in each lane.
inline Vec<int32_t> multiply_words(Vec<int32_t> a, Vec<int32_t> b) {
#if defined(__AVX512BW__)
  return reinterpret_cast<Vec<int32_t>>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec<int32_t>>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__x86_64__)
  return reinterpret_cast<Vec<int32_t>>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}
inline Vec<int32_t> dot_bytes(Bytes a, Bytes b, Vec<int32_t> sum) {
  return sum + multiply_words(a.even, b.even) + multiply_words(a.odd, b.odd);
}
#endif

inline Bytes spread_bytes(const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return signed_bytes(broadcast<int32_t>(four));
}

// Cache lines to fetch into L2 beside the products, so many a step: what comes after this panel.
struct Ahead {
  const uint8_t* next = nullptr;
  int lines = 0;
};

template <int kRows>
using ByteSums = Vec<int32_t>[kRows][kByteVectors];

// kRows rows of A, lda bytes apart, times kByteColumns columns of a panel, which begin at b.
template <bool kNibbles, int kRows>
WEFT_INLINE void add_byte_products(int64_t steps, const int8_t* a, int64_t lda, const uint8_t* b,
                                   Ahead ahead, ByteSums<kRows>& sum) {
  for (int64_t k = 0; k < steps; ++k, b += kByteStep) {
    for (int line = 0; line < ahead.lines; ++line, ahead.next += 64)
      __builtin_prefetch(ahead.next, 0, 2);
    Vec<int32_t> raw[kByteVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kByteVectors; ++j) raw[j] = load_vec<int32_t>(b + j * kVecBytes);
#pragma GCC unroll 2
    for (int half = 0; half < (kNibbles ? 2 : 1); ++half, a += 4) {
      Bytes part[kByteVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kByteVectors; ++j)
        part[j] = unsigned_bytes(kNibbles ? (raw[j] >> (4 * half)) & 0x0f0f0f0f : raw[j]);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Bytes x = spread_bytes(a + i * lda);
#pragma GCC unroll 4
        for (int j = 0; j < kByteVectors; ++j) sum[i][j] = dot_bytes(x, part[j], sum[i][j]);
      }
    }
  }
}

template <int kRows>
WEFT_INLINE void start_byte_sums(const int32_t* init, int64_t stride, ByteSums<kRows>& sum) {
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kByteVectors; ++j) sum[i][j] = broadcast<int32_t>(init[i * stride]);
}

// One tile: kRows rows of A times a panel; C in rows of kBytePanel.
template <bool kNibbles, int kRows>
inline void byte_tile(int64_t steps, const int8_t* a, int64_t lda, const uint8_t* panel,
                      const int32_t* init, int64_t init_stride, int32_t* c, Ahead ahead) {
  for (int n = 0; n < kBytePanel; n += kByteColumns) {
    ByteSums<kRows> sum;
    start_byte_sums<kRows>(init, init_stride, sum);
    add_byte_products<kNibbles, kRows>(steps, a, lda, panel + n * 4, ahead, sum);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kByteVectors; ++j)
        store_vec<int32_t>(c + i * kBytePanel + n + j * kLanes<int32_t>, sum[i][j]);
    ahead.lines = 0;
  }
}

// The same for 1 … kByteTileRows rows.
template <bool kNibbles, int kRows = kByteTileRows>
inline void byte_rows(int64_t rows, int64_t steps, const int8_t* a, int64_t lda,
                      const uint8_t* panel, const int32_t* init, int64_t init_stride, int32_t* c,
                      Ahead ahead) {
  if (rows == kRows)
    return byte_tile<kNibbles, kRows>(steps, a, lda, panel, init, init_stride, c, ahead);
  if constexpr (kRows > 1)
    byte_rows<kNibbles, kRows - 1>(rows, steps, a, lda, panel, init, init_stride, c, ahead);
}

// Σ a over n bytes.
inline int32_t sum_bytes(const int8_t* a, int64_t n) {
  const Bytes ones = unsigned_bytes(broadcast<int32_t>(0x01010101));
  Vec<int32_t> sum = {};
  int64_t i = 0;
  for (; i + kVecBytes <= n; i += kVecBytes)
    sum = dot_bytes(signed_bytes(load_vec<int32_t>(a + i)), ones, sum);
  int32_t all = reduce<int32_t>(sum, [](auto x, auto y) { return x + y; });
  for (; i < n; ++i) all += a[i];
  return all;
}

// ---- floats to bytes

// To the nearest integer, ties to even, for |v| < 2^31.
inline Vec<int32_t> round_to_int(Vec<float> v) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec<int32_t>>(_mm512_cvtps_epi32(v));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec<int32_t>>(_mm256_cvtps_epi32(v));
#elif defined(__x86_64__)
  return reinterpret_cast<Vec<int32_t>>(_mm_cvtps_epi32(v));
#else
  Vec<int32_t> rounded;
  for (int i = 0; i < kLanes<float>; ++i) rounded[i] = static_cast<int32_t>(std::nearbyint(v[i]));
  return rounded;
#endif
}

// The low bytes, of the first n lanes.
inline void store_bytes(int8_t* p, Vec<int32_t> v, int64_t n = kLanes<int32_t>) {
#if defined(__AVX512F__)  // compilers convert these vectors one by one
  const __m128i bytes = _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  const __m256i order =
      _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i fours = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(v), order);
  const __m128i bytes =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
#else
  const QuarterLanes bytes =
      __builtin_convertvector(reinterpret_cast<Vec<uint32_t>>(v), QuarterLanes);
#endif
  if (n >= kLanes<int32_t>)
    std::memcpy(p, &bytes, kLanes<int32_t>);
  else
    std::memcpy(p, &bytes, static_cast<size_t>(n));
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
