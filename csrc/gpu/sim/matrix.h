// Products of matrices as the simulator makes them. Elements become floats, in which each product is
// exact. Floats are added in the order of k, one after the other, to what the accumulator holds;
// tensor cores add in an order of their own and cut some bits off. Of int8 the sum of one
// instruction is exact in float, too: 32 products of up to 2^14; it is added in int32, which wraps.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "gpu/layouts.h"
#include "gpu/sim/convert.h"

namespace weft::gpu::sim {

inline float decoded(bf16 x) { return to_float(x); }
inline float decoded(f16 x) { return to_float(x); }
inline float decoded(tf32 x) { return std::bit_cast<float>(x.bits & ~0x1FFFu); }
inline float decoded(int8_t x) { return x; }

// d[M, N] += a[M, K] · b[K, N], M a multiple of 4 and N of 8. D: float, int32_t.
template <class D>
void multiply_add(D* d, const float* a, const float* b, uint32_t M, uint32_t N, uint32_t K) {
  using Eight [[gnu::vector_size(32)]] = float;
  constexpr bool floats = std::is_same_v<D, float>;
  for (uint32_t m = 0; m < M; m += 4)
    for (uint32_t n = 0; n < N; n += 8) {
      Eight sums[4] = {};
      if constexpr (floats)
        for (uint32_t i = 0; i < 4; ++i) std::memcpy(&sums[i], d + (m + i) * N + n, sizeof(Eight));
      for (uint32_t k = 0; k < K; ++k) {
        Eight row;
        std::memcpy(&row, b + k * N + n, sizeof row);
        for (uint32_t i = 0; i < 4; ++i) sums[i] += a[(m + i) * K + k] * row;
      }
      for (uint32_t i = 0; i < 4; ++i) {
        D* to = d + (m + i) * N + n;
        if constexpr (floats)
          std::memcpy(to, &sums[i], sizeof(Eight));
        else
          for (int j = 0; j < 8; ++j)
            to[j] = static_cast<D>(static_cast<uint32_t>(to[j]) +
                                   static_cast<uint32_t>(static_cast<D>(sums[i][j])));
      }
    }
}

}  // namespace weft::gpu::sim
