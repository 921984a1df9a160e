// Arithmetic; PTX ISA: Floating Point Instructions.
#pragma once

#include "gpu/math.h"
#include "gpu/ptx/base.h"

namespace weft::gpu {

WEFT_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
WEFT_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
WEFT_DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
WEFT_DEVICE float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
WEFT_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

WEFT_DEVICE float rsqrt(float x) { return __frcp_rn(__fsqrt_rn(x)); }
WEFT_DEVICE double rsqrt(double x) { return __drcp_rn(__dsqrt_rn(x)); }
WEFT_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
WEFT_DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }

WEFT_DEVICE float max_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

}  // namespace weft::gpu
