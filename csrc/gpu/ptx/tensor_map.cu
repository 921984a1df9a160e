// Tensor maps, encoded by the driver, whose function the runtime looks up: nothing links to libcuda.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "core/error.h"
#include "gpu/gpu.h"

namespace weft::gpu {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 find_encoder() {
  constexpr unsigned kCuda12 = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              kCuda12, cudaEnableDefault, &found);
  check(status == cudaSuccess && found == cudaDriverEntryPointSuccess,
        "CUDA: the driver has no cuTensorMapEncodeTiled; it came with CUDA 12");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

CUtensorMapDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
    case DType::f32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::bf16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::f16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::i64:
      return CU_TENSOR_MAP_DATA_TYPE_INT64;
    case DType::i32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

}  // namespace

TensorMap make_tensor_map(const TensorDescription& t) {
  check_tensor(t);
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encoder();
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  const cuuint32_t ones[kMostTensorDims] = {1, 1, 1, 1, 1};
  cuuint64_t size[kMostTensorDims], stride[kMostTensorDims];
  for (int d = 0; d < t.ndim; ++d) size[d] = t.size[d];
  for (int d = 0; d + 1 < t.ndim; ++d) stride[d] = t.stride[d];
  constexpr CUtensorMapSwizzle swizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_32B,
                                             CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
  alignas(64) CUtensorMap encoded;
  const CUresult result =
      encode(&encoded, data_type(t.dtype), static_cast<cuuint32_t>(t.ndim), t.data, size, stride,
             t.box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzles[static_cast<int>(t.swizzle)],
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             t.nan_fill ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
                        : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "CUDA: cuTensorMapEncodeTiled refused a tensor, error ",
        static_cast<int>(result));
  TensorMap map;
  std::memcpy(&map, &encoded, sizeof map);
  return map;
}

}  // namespace weft::gpu
