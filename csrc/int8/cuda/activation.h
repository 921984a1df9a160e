// Activations of single floats, by the same formulas as cpu/activation.h.
#pragma once

#include "gpu/gpu.h"
#include "int8/params.h"

namespace weft::int8::cuda {

using namespace ::weft::gpu;

WEFT_DEVICE float relu(float x) { return x < 0 ? 0.0f : x; }

WEFT_DEVICE float silu(float x) {
  return x * rcp_approx(1.0f + exp2_approx(x * -0x1.715476p0f));  // -log2 e
}

// x / 2 · (1 + tanh(u)) = x · sigmoid(2 u)
WEFT_DEVICE float gelu_tanh(float x) {
  const float u = x * fma(x * x, 0.044715f, 1.0f);
  return x * rcp_approx(1.0f + exp2_approx(u * -0x1.26aec2p1f));  // -2 √(2/π) log2 e
}

// x · Φ(x) by erfc(z), z = |x| / √2, after Abramowitz and Stegun 7.1.26: an absolute error of 1.5e-7
// in erfc.
WEFT_DEVICE float gelu(float x) {
  const float magnitude = x < 0 ? -x : x, z = magnitude * 0x1.6a09e6p-1f;
  const float t = rcp_approx(fma(z, 0.3275911f, 1.0f));
  float sum = fma(t, 1.061405429f, -1.453152027f);
  sum = fma(sum, t, 1.421413741f);
  sum = fma(sum, t, -0.284496736f);
  sum = fma(sum, t, 0.254829592f);
  const float tail = sum * t * exp2_approx(z * z * -0x1.715476p0f) * 0.5f;  // 1 - Φ(|x|)
  return x * (x < 0 ? tail : 1.0f - tail);
}

// Of all of v: the activation is the same for a whole call, and is asked for once.
template <int kCount, class Values>
WEFT_DEVICE void activate(Activation activation, Values& v) {
  const auto each = [&](const auto& f) {
    WEFT_UNROLL
    for (int i = 0; i < kCount; ++i) v[i] = f(v[i]);
  };
  switch (activation) {
    case Activation::relu:
      return each([](float x) { return relu(x); });
    case Activation::gelu:
      return each([](float x) { return gelu(x); });
    case Activation::gelu_tanh:
      return each([](float x) { return gelu_tanh(x); });
    case Activation::silu:
    case Activation::silu_mul:
      return each([](float x) { return silu(x); });
    case Activation::none:
      break;
  }
}

}  // namespace weft::int8::cuda
