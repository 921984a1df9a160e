// What the plans and launches of all families are made of, on the host.
#pragma once

#include <cstdint>

#include "core/error.h"
#include "core/rows.h"

namespace weft::gpu {

// ---- numbers

template <class T>
constexpr T power_of_two(T least) {
  T power = 1;
  while (power < least) power *= 2;
  return power;
}

// Blocks as a grid has them.
inline uint32_t grid_size(int64_t blocks) {
  check(blocks <= INT32_MAX, "weft: ", blocks, " blocks are more than a CUDA grid holds");
  return static_cast<uint32_t>(blocks);
}

// ---- addresses

inline bool is_aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
}
// Does every row begin at a multiple of so many bytes?
inline bool is_aligned(const Rows& rows, int64_t bytes) {
  const auto size = static_cast<int64_t>(size_of(rows.dtype));
  for (int d = 0; d < rows.ndim; ++d)
    if (rows.size[d] > 1 && rows.stride[d] * size % bytes != 0) return false;
  return is_aligned(rows.data, bytes);
}

// ---- types

// f(X{}) for the dtypes that kernels are compiled for: float64 has been refused.
template <class F>
void with_kernel_type(DType x, const F& f) {
  if (x == DType::bf16)
    f(bf16{});
  else if (x == DType::f16)
    f(f16{});
  else
    f(float{});
}

}  // namespace weft::gpu
