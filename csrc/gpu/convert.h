// Conversions between the storage types bf16 and f16 and float: to nearest, ties to even.
#pragma once

#include <type_traits>

#include "core/dtype.h"
#include "gpu/vec.h"

namespace weft::gpu {

WEFT_DEVICE float to_float(bf16 x);
WEFT_DEVICE float to_float(f16 x);
WEFT_DEVICE bf16 to_bf16(float x);
WEFT_DEVICE f16 to_f16(float x);

// Two in one instruction; the first lies in the low half.
WEFT_DEVICE Vec<bf16, 2> to_bf16(float low, float high);
WEFT_DEVICE Vec<f16, 2> to_f16(float low, float high);

// To the nearest integer, ties to even, held to -128 … 127; NaN gives 0.
WEFT_DEVICE int8_t to_i8(float x);

// convert<To>(x), between any two of float, double, bf16 and f16, or vectors of them.
template <class To, class From>
WEFT_DEVICE To convert(From x) {
  constexpr bool from_half = std::is_same_v<From, bf16> || std::is_same_v<From, f16>;
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (from_half)
    return convert<To>(to_float(x));
  else if constexpr (std::is_same_v<To, bf16>)
    return to_bf16(static_cast<float>(x));
  else if constexpr (std::is_same_v<To, f16>)
    return to_f16(static_cast<float>(x));
  else
    return static_cast<To>(x);
}

template <class To, class From, int N>
WEFT_DEVICE Vec<To, N> convert(const Vec<From, N>& x) {
  Vec<To, N> y;
  constexpr bool pairs = N > 1 && std::is_same_v<From, float>;
  if constexpr (pairs && std::is_same_v<To, bf16>) {
    for (int i = 0; i < N; i += 2) {
      const Vec<bf16, 2> pair = to_bf16(x[i], x[i + 1]);
      y[i] = pair[0], y[i + 1] = pair[1];
    }
  } else if constexpr (pairs && std::is_same_v<To, f16>) {
    for (int i = 0; i < N; i += 2) {
      const Vec<f16, 2> pair = to_f16(x[i], x[i + 1]);
      y[i] = pair[0], y[i + 1] = pair[1];
    }
  } else {
    for (int i = 0; i < N; ++i) y[i] = convert<To>(x[i]);
  }
  return y;
}

}  // namespace weft::gpu
