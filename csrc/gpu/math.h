// Arithmetic that the GPU has an instruction for. The approximations' errors are the hardware's; the
// simulator computes the same functions to nearly full precision, so results are compared with a
// tolerance.
#pragma once

#include "core/divide.h"
#include "gpu/base.h"

namespace weft::gpu {

WEFT_DEVICE float exp2_approx(float x);   // 2 ulp; subnormals are zero; exp2(-inf) = 0
WEFT_DEVICE float log2_approx(float x);   // 2^-22 relative
WEFT_DEVICE float rsqrt_approx(float x);  // 2^-22.9 relative
WEFT_DEVICE float rcp_approx(float x);    // 1 ulp
WEFT_DEVICE float tanh_approx(float x);   // 2^-11 relative

WEFT_DEVICE float rsqrt(float x);  // as exact as 1 / sqrt(x) in the type
WEFT_DEVICE double rsqrt(double x);

WEFT_DEVICE float fma(float a, float b, float c);
WEFT_DEVICE double fma(double a, double b, double c);

// NaN where one is NaN, unlike fmaxf.
WEFT_DEVICE float max_nan(float a, float b);

template <class T>
WEFT_DEVICE T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
WEFT_DEVICE T min(T a, T b) {
  return b < a ? b : a;
}

using ::weft::ceil_div;
using ::weft::round_up;

}  // namespace weft::gpu
