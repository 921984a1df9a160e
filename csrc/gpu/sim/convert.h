// Conversions in plain C++, for the simulator: the same bits as the hardware's.
#pragma once

#include <bit>
#include <cmath>

#include "gpu/convert.h"

namespace weft::gpu {

WEFT_DEVICE float to_float(bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

WEFT_DEVICE float to_float(f16 x) {
  const uint32_t sign = uint32_t{x.bits} >> 15 << 31;
  const uint32_t exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | mantissa << 13);
  if (exponent == 0)  // subnormal: mantissa · 2^-24
    return std::bit_cast<float>(sign |
                                std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

WEFT_DEVICE bf16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

WEFT_DEVICE f16 to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return {0x7FFF};
  if (magnitude >= 0x477FF000) return {static_cast<uint16_t>(sign | 0x7C00)};  // from 65520 on
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 rounds to multiples of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) & 0x7FF))};
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | (rounded - (112u << 23)) >> 13)};
}

WEFT_DEVICE Vec<bf16, 2> to_bf16(float low, float high) { return {{to_bf16(low), to_bf16(high)}}; }
WEFT_DEVICE Vec<f16, 2> to_f16(float low, float high) { return {{to_f16(low), to_f16(high)}}; }

WEFT_DEVICE int8_t to_i8(float x) {
  if (x != x) return 0;
  const float rounded = std::nearbyint(x);
  return static_cast<int8_t>(rounded < -128 ? -128 : rounded > 127 ? 127 : rounded);
}

}  // namespace weft::gpu
