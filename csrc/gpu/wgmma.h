// Matrix products of a warpgroup, whose operands come from shared memory while its threads go on:
// D[64, N] = A[64, K] · B[K, N] + D. sm_90a.
//
//   using A = MatrixTile<bf16, Major::k, Swizzle::bytes128, 64, 64>;
//   using B = MatrixTile<bf16, Major::k, Swizzle::bytes128, 128, 64>;
//   WgmmaAccumulator<float, 128> d;
//   wgmma_fence(d);
//   for (uint32_t k = 0; k < 64; k += 16)
//     wgmma(d, A::descriptor(a, 0, k), B::descriptor(b, 0, k), k > 0);
//   wgmma_commit();
//   wgmma_wait<0>(d);
//
// All 128 threads of the warpgroup execute each of these together, with the same arguments. From its
// wgmma to the wait that covers it nobody touches an accumulator, nor an A in registers, nor writes
// to the tiles. Tiles come from bulk or tensor copies that have been waited for, or from stores,
// then fence_async and a barrier.
#pragma once

#include "gpu/layouts.h"

namespace weft::gpu {

// What the tensor cores take for N: multiples of 8 to 256; for int8, beyond 32 only those of 16.
template <class T>
WEFT_INLINE constexpr bool is_wgmma_width(int n) {
  return n >= 8 && n <= 256 && n % 8 == 0 && (sizeof(T) > 1 || n <= 32 || n % 16 == 0);
}

enum class Sign { plus, minus };

// D = ±A · B, + D where `accumulate`. In 16 bits A and B lie in either direction, int8 along K.
//
//   T        D          K
//   bf16     float      16
//   f16      float      16
//   int8_t   int32_t    32     no Sign::minus
template <Sign kSign = Sign::plus, class D, int N, class T, Major kMajorA, Major kMajorB>
WEFT_DEVICE void wgmma(WgmmaAccumulator<D, N>& d, MatrixDescriptor<T, kMajorA> a,
                       MatrixDescriptor<T, kMajorB> b, bool accumulate);
// The same with A in registers: warp w of the warpgroup has rows 16w … 16w + 15.
template <Sign kSign = Sign::plus, class D, int N, class T, Major kMajorB>
WEFT_DEVICE void wgmma(WgmmaAccumulator<D, N>& d, const FragmentA<T>& a,
                       MatrixDescriptor<T, kMajorB> b, bool accumulate);

// In front of the first wgmma that uses them, and again after they have been touched: names the
// registers (accumulators, FragmentA, arrays of them) that the thread has done with. Not needed
// between products into the same accumulators.
template <class... Registers>
WEFT_DEVICE void wgmma_fence(Registers&... registers);

// Ends a group: the products since the last.
WEFT_DEVICE void wgmma_commit();
// Until at most kPending (0 … 7) of the newest groups are under way; names the registers that may be
// touched from here on.
template <int kPending, class... Registers>
WEFT_DEVICE void wgmma_wait(Registers&... registers);

namespace detail {
// What wgmma takes.
template <class D, int N, class T, Sign kSign, Major kMajorA, Major kMajorB>
WEFT_INLINE constexpr void check_wgmma() {
  constexpr bool i8 = std::is_same_v<T, int8_t>;
  static_assert(i8 || std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  static_assert(std::is_same_v<D, std::conditional_t<i8, int32_t, float>>);
  static_assert(is_wgmma_width<T>(N));
  static_assert(!i8 || (kMajorA == Major::k && kMajorB == Major::k && kSign == Sign::plus));
}

// f(registers) for each accumulator and FragmentA of an array.
template <class R, class F>
WEFT_DEVICE void each_of(R& registers, const F& f) {
  if constexpr (std::is_array_v<R>) {
    for (auto& part : registers) each_of(part, f);
  } else {
    f(registers);
  }
}
}  // namespace detail

}  // namespace weft::gpu
