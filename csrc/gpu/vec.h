// Vec<T, N>: N values in registers, moved to and from memory up to 16 bytes at a time.
#pragma once

#include "gpu/base.h"

namespace weft::gpu {

// What one access of a thread may move.
constexpr size_t kVectorBytes = 16;

template <class T, int N>
struct alignas(sizeof(T) * N >= kVectorBytes ? kVectorBytes : sizeof(T) * N) Vec {
  static_assert((N & (N - 1)) == 0, "a vector has a power of two of elements");
  using Element = T;
  static constexpr int kSize = N;

  T data[N];

  WEFT_INLINE constexpr T& operator[](int i) { return data[i]; }
  WEFT_INLINE constexpr const T& operator[](int i) const { return data[i]; }

  WEFT_INLINE static constexpr Vec filled(T value) {
    Vec v;
    for (int i = 0; i < N; ++i) v.data[i] = value;
    return v;
  }
};

// As many as one access moves: Vec<float, 4>, Vec<bf16, 8>.
template <class T>
constexpr int kVecSize = static_cast<int>(kVectorBytes / sizeof(T));

// What a longer vector is moved in: pieces of at most 16 bytes.
template <class T, int N>
using Piece = Vec<T, (sizeof(T) * N > kVectorBytes ? kVecSize<T> : N)>;

}  // namespace weft::gpu
