// 2^x on vectors, for softmax: the scale by log2(e) is the caller's, folded into what it multiplies
// with anyway.
//
//   2^x = 2^n · 2^r,  n = round(x),  r = x - n in [-1/2, 1/2]
//
// 2^r by a polynomial (minimax in relative error, Remez), 2^n by the exponent. -inf gives 0, +inf
// inf, NaN NaN. Cost on AVX-512: kDegree + 2 instructions for 16 values.
#pragma once

#include "cpu/vec.h"

namespace weft::cpu::WEFT_CPU_LEVEL {

// How exact: the relative error of the polynomial.
enum class Exp2 {
  half,  // 4e-6: for results that bf16 or fp16 will hold
  full,  // 7e-9: one last place of float
};

namespace exp2_coefficients {
constexpr float half[] = {1.0000026f, 0.69314696f, 0.24022242f, 0.05592078f, 0.0096715968f};
constexpr float full[] = {1.0f,           0.69314718f,    0.24022651f,   0.055503588f,
                          0.00961817801f, 0.00133948653f, 0.00015468479f};
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
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm512_scalef_ps(exp2_poly<kExact>(_mm512_reduce_ps(x, kNearest)), x);
#else
  // Out of [-126, 128] the exponent's bits would run over: below all is 0, above inf.
  const Vec<float> near = vmin(vmax(x, broadcast(-127.0f)), broadcast(128.0f));
  const Vec<float> shifted = near + 0x1.8p23f;  // n stands in the low bits
  const Vec<float> r = near - (shifted - 0x1.8p23f);
  const Vec<uint32_t> bits = as_bits(exp2_poly<kExact>(r)) + (as_bits(shifted) << 23);
  const Vec<float> y = x > broadcast(-126.5f) ? as_float(bits) : Vec<float>{};
  const Vec<float> most = x < broadcast(128.0f) ? y : broadcast(__builtin_inff());
  return x == x ? most : x;
#endif
}

template <Exp2>
inline Vec<double> exp2(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
