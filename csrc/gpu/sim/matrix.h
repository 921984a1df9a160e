// Products of matrices as the simulator makes them. Elements become floats or int32, in which each
// product is exact; they are added in fp32 in the order of k, one after the other, to what the
// accumulator holds. Tensor cores add in an order of their own and cut some bits off.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "gpu/layouts.h"
#include "gpu/sim/convert.h"

namespace weft::gpu::sim {

inline float decoded(bf16 x) { return to_float(x); }
inline float decoded(f16 x) { return to_float(x); }
inline float decoded(tf32 x) { return std::bit_cast<float>(x.bits & ~0x1FFFu); }
inline int32_t decoded(int8_t x) { return x; }

template <class T>
using Decoded = decltype(decoded(T{}));

// d[M, N] += a[M, K] · b[K, N], N a multiple of 8. Integers wrap.
template <class T>
void multiply_add(T* d, const T* a, const T* b, uint32_t M, uint32_t N, uint32_t K) {
  for (uint32_t m = 0; m < M; ++m)
    for (uint32_t k = 0; k < K; ++k) {
      const T factor = a[m * K + k];
      const T* row = b + k * N;
      T* sum = d + m * N;
      for (uint32_t n = 0; n < N; n += 8)
        for (uint32_t i = 0; i < 8; ++i) {
          if constexpr (std::is_same_v<T, int32_t>)
            sum[n + i] = static_cast<int32_t>(static_cast<uint32_t>(sum[n + i]) +
                                              static_cast<uint32_t>(factor * row[n + i]));
          else
            sum[n + i] += factor * row[n + i];
        }
    }
}

}  // namespace weft::gpu::sim
