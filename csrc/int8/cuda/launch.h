// What the launches of the INT8 family share, on the host.
#pragma once

#include "core/error.h"
#include "core/rows.h"
#include "gpu/gpu.h"
#include "int8/cuda/int8.h"

namespace weft::int8::cuda {

using namespace ::weft::gpu;

inline uint32_t grid_size(int64_t blocks) {
  check(blocks <= INT32_MAX, "weft: ", blocks, " blocks are more than a CUDA grid holds");
  return static_cast<uint32_t>(blocks);
}

inline bool is_aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
}
// Does every row begin at a multiple of so many bytes?
inline bool is_aligned(const Rows& rows, int64_t bytes) {
  for (int d = 0; d < rows.ndim; ++d)
    if (rows.size[d] != 1 && rows.stride[d] * static_cast<int64_t>(size_of(rows.dtype)) % bytes)
      return false;
  return is_aligned(rows.data, bytes);
}

// f(X{}) for the dtype of floats. float64 has been refused.
template <class F>
void with_kernel_type(DType x, const F& f) {
  if (x == DType::bf16)
    f(bf16{});
  else if (x == DType::f16)
    f(f16{});
  else
    f(float{});
}

}  // namespace weft::int8::cuda
