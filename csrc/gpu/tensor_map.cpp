// The rules of cuTensorMapEncodeTiled (CUDA driver API: Tensor Map Object Management), checked for
// both of its implementations, in words.
#include "core/error.h"
#include "gpu/tma.h"

namespace weft::gpu {

void check_tensor(const TensorDescription& t) {
  const auto expect = [](bool good, const auto&... what) { check(good, "tensor map: ", what...); };
  constexpr uint64_t kMostSize = uint64_t{1} << 32, kMostStride = uint64_t{1} << 40;
  constexpr uint32_t kMostBox = 256;
  expect(t.ndim >= 1 && t.ndim <= kMostTensorDims, t.ndim, " dimensions, expected 1 to 5");
  expect(t.dtype != DType::boolean && t.dtype != DType::other, "no tensors of ", name_of(t.dtype));
  expect(reinterpret_cast<uintptr_t>(t.data) % 16 == 0, "data at ", t.data,
         ", expected a multiple of 16");
  for (int d = 0; d < t.ndim; ++d) {
    expect(t.size[d] >= 1 && t.size[d] <= kMostSize, "size ", t.size[d], " of dimension ", d,
           ", expected 1 to 2^32");
    expect(t.box[d] >= 1 && t.box[d] <= kMostBox, "box of ", t.box[d], " in dimension ", d,
           ", expected 1 to 256");
    if (d > 0)
      expect(t.stride[d - 1] % 16 == 0 && t.stride[d - 1] < kMostStride, "stride of ",
             t.stride[d - 1], " bytes in dimension ", d, ", expected a multiple of 16 below 2^40");
  }
  const uint64_t row = t.box[0] * size_of(t.dtype);
  const uint64_t span = t.swizzle == Swizzle::none ? 0 : 16u << static_cast<int>(t.swizzle);
  expect(row % 16 == 0, "rows of ", row, " bytes in the box, expected a multiple of 16");
  // The hardware allows narrower rows, and leaves gaps then.
  expect(span == 0 || row == span, "rows of ", row, " bytes in the box, expected ", span,
         ", as swizzled");
  expect(!t.nan_fill || is_float(t.dtype), "NaN to fill a tensor of ", name_of(t.dtype));
}

}  // namespace weft::gpu
