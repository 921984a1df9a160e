// Arithmetic in plain C++, for the simulator.
#pragma once

#include <cmath>

#include "gpu/math.h"

namespace weft::gpu {

namespace detail {
// What the .ftz instructions do to subnormal numbers.
WEFT_DEVICE float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
}  // namespace detail

WEFT_DEVICE float exp2_approx(float x) { return detail::flush(std::exp2(detail::flush(x))); }
WEFT_DEVICE float log2_approx(float x) { return std::log2(detail::flush(x)); }
WEFT_DEVICE float rsqrt_approx(float x) { return 1 / std::sqrt(detail::flush(x)); }
WEFT_DEVICE float rcp_approx(float x) { return detail::flush(1 / detail::flush(x)); }
WEFT_DEVICE float tanh_approx(float x) { return std::tanh(x); }
WEFT_DEVICE float rsqrt(float x) { return 1 / std::sqrt(x); }
WEFT_DEVICE double rsqrt(double x) { return 1 / std::sqrt(x); }
WEFT_DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
WEFT_DEVICE double fma(double a, double b, double c) { return std::fma(a, b, c); }
WEFT_DEVICE float max_nan(float a, float b) { return a != a || a > b ? a : b; }

}  // namespace weft::gpu
