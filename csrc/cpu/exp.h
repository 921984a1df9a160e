// 2^x on vectors, for softmax: the scale by log2(e) is the caller's, folded into what it multiplies
// with anyway.
//
//   2^x = 2^n · 2^r,  n = floor(x),  r = x - n in [0, 1]
//
// 2^r by a polynomial (minimax in relative error, by Remez' exchange, exact at 0), 2^n by the
// exponent. -inf gives 0, +inf inf, NaN NaN. Cost on AVX-512: degree + 2 instructions for 16 values.
#pragma once

#include "cpu/vec.h"

namespace weft::cpu::WEFT_CPU_LEVEL {

// How exact: the relative error of the polynomial.
enum class Exp2 {
  half,  // 3e-6: for results that a 16-bit float will hold
  full,  // 8e-8: about a last place of float
};

namespace exp2_coefficients {
constexpr float half[] = {1, 0.693044845f, 0.241280205f, 0.0522424742f, 0.0134266843f};
constexpr float full[] = {
    1, 0.693151312f, 0.24016445f, 0.0557999131f, 0.00901703032f, 0.00186713007f};
}  // namespace exp2_coefficients

template <Exp2 kExact>
inline Vec<float> exp2_poly(Vec<float> r) {
  const auto horner = [r](const auto& c) {
    constexpr int n = sizeof c / sizeof c[0];
    Vec<float> sum = broadcast(c[n - 1]);
#pragma GCC unroll 8
    for (int i = n - 2; i >= 0; --i) sum = multiply_add(sum, r, broadcast(c[i]));
    return sum;
  };
  if constexpr (kExact == Exp2::half)
    return horner(exp2_coefficients::half);
  else
    return horner(exp2_coefficients::full);
}

template <Exp2 kExact>
inline Vec<float> exp2(Vec<float> x) {
#if defined(__AVX512DQ__)
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;  // scalef's own floor
  return _mm512_scalef_ps(exp2_poly<kExact>(_mm512_reduce_ps(x, kDown)), x);
#else
  // Beyond these the exponent's bits would run over: below all is 0, above inf.
  const Vec<float> near = vmin(vmax(x, broadcast(-126.0f)), broadcast(127.5f));
  const Vec<float> shifted = (near - 0.5f) + 0x1.8p23f;  // n stands in the low bits
  const Vec<float> r = near - (shifted - 0x1.8p23f);
  const Vec<float> y = as_float(as_bits(exp2_poly<kExact>(r)) + (as_bits(shifted) << 23));
  const Vec<float> low = x < broadcast(-126.0f) ? Vec<float>{} : y;
  const Vec<float> high = x < broadcast(128.0f) ? low : broadcast(__builtin_inff());
  return x == x ? high : x;
#endif
}

template <Exp2>
inline Vec<double> exp2(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
