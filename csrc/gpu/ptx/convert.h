// Conversions; PTX ISA: cvt.
#pragma once

#include "gpu/convert.h"
#include "gpu/ptx/base.h"

namespace weft::gpu {

WEFT_DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }

WEFT_DEVICE float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

WEFT_DEVICE bf16 to_bf16(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

WEFT_DEVICE f16 to_f16(float x) {
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// The first source goes to the upper half.
WEFT_DEVICE Vec<bf16, 2> to_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  Vec<bf16, 2> pair;
  __builtin_memcpy(&pair, &word, sizeof pair);
  return pair;
}

WEFT_DEVICE Vec<f16, 2> to_f16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  Vec<f16, 2> pair;
  __builtin_memcpy(&pair, &word, sizeof pair);
  return pair;
}

WEFT_DEVICE int8_t to_i8(float x) {
  int32_t y;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(y) : "f"(x));
  return static_cast<int8_t>(y);
}

}  // namespace weft::gpu
