// Activations on vectors of float, by exp2.h.
#pragma once

#include "cpu/exp.h"

namespace weft::cpu::WEFT_CPU_LEVEL {

inline Vec<float> relu(Vec<float> x) { return x < 0 ? Vec<float>{} : x; }

inline Vec<float> silu(Vec<float> x) {
  return x / (1.0f + exp2<Exp2::full>(x * broadcast(-0x1.715476p0f)));  // -log2 e
}

// x / 2 · (1 + tanh(u)) = x · sigmoid(2 u)
inline Vec<float> gelu_tanh(Vec<float> x) {
  const Vec<float> u = x * multiply_add(x * x, broadcast(0.044715f), broadcast(1.0f));
  return x / (1.0f + exp2<Exp2::full>(u * broadcast(-0x1.26aec2p1f)));  // -2 √(2/π) log2 e
}

// x · Φ(x) by erfc(z), z = |x| / √2, after Abramowitz and Stegun 7.1.26: an absolute error of 1.5e-7
// in erfc.
inline Vec<float> gelu(Vec<float> x) {
  const Vec<float> magnitude = x < 0 ? -x : x, z = magnitude * broadcast(0x1.6a09e6p-1f);
  const Vec<float> t = 1.0f / multiply_add(z, broadcast(0.3275911f), broadcast(1.0f));
  Vec<float> sum = broadcast(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    sum = multiply_add(sum, t, broadcast(c));
  const Vec<float> tail =
      sum * t * exp2<Exp2::full>(z * z * broadcast(-0x1.715476p0f)) * 0.5f;  // 1 - Φ(|x|)
  return x * (x < 0 ? tail : 1.0f - tail);
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
