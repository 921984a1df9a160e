// Dot products of 16-bit integers, two to a 32-bit lane: for bytes times numbers that want more than a
// byte. Only where the ISA has them (AVX512_VNNI).
#pragma once

#include "cpu/panel_int8.h"

namespace weft::cpu::WEFT_CPU_LEVEL {

#if defined(__AVX512VNNI__)
constexpr bool kWordDot = true;

// As many bytes as two vectors have lanes, widened.
inline Vec<int32_t> load_words(const int8_t* p) {
  return reinterpret_cast<Vec<int32_t>>(
      _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}

inline Vec<int32_t> dot_words(Vec<int32_t> a, Vec<int32_t> b, Vec<int32_t> sum) {
  return reinterpret_cast<Vec<int32_t>>(_mm512_dpwssd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
#else
constexpr bool kWordDot = false;
#endif

// v[0 … n) in steps of `scale`, the least with which they fit into 16 bits: n in whole vectors. A NaN
// or infinity among them makes scale one.
inline float round_to_words(const float* v, int64_t n, int16_t* to) {
  constexpr int lane = kLanes<float>;
  constexpr float kMost = 32767;
  Vec<float> most = {};
  for (int64_t i = 0; i < n; i += lane) most = magnitude_max(most, load_vec<float>(v + i));
  const int32_t bits = reduce<int32_t>(reinterpret_cast<Vec<int32_t>>(most),
                                       [](auto a, auto b) { return a > b ? a : b; });
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  const Vec<float> inverse = broadcast(largest > 0 ? kMost / largest : 0.0f);
  for (int64_t i = 0; i < n; i += lane) {
    const HalfLanes words = __builtin_convertvector(
        reinterpret_cast<Vec<uint32_t>>(round_to_int(load_vec<float>(v + i) * inverse)), HalfLanes);
    std::memcpy(to + i, &words, sizeof words);
  }
  return largest / kMost;
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
