// torch tensors through the stable ABI: dtypes, allocation, and the words in which arguments are refused.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace weft {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// Beyond this an output is worth huge pages: touching fresh memory in 4 KiB pages is several times slower than the kernels.
constexpr int64_t kHugeOutput = 4 << 20;

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Long:
      return DType::i64;
    case ScalarType::Int:
      return DType::i32;
    case ScalarType::Char:
      return DType::i8;
    case ScalarType::Byte:
      return DType::u8;
    case ScalarType::Bool:
      return DType::boolean;
    default:
      return DType::other;
  }
}
inline DType dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

inline int32_t torch_dtype(DType type) {
  switch (type) {
    case DType::f64:
      return aoti_torch_dtype_float64();
    case DType::f32:
      return aoti_torch_dtype_float32();
    case DType::bf16:
      return aoti_torch_dtype_bfloat16();
    case DType::f16:
      return aoti_torch_dtype_float16();
    case DType::i64:
      return aoti_torch_dtype_int64();
    case DType::i32:
      return aoti_torch_dtype_int32();
    case DType::i8:
      return aoti_torch_dtype_int8();
    case DType::u8:
      return aoti_torch_dtype_uint8();
    case DType::boolean:
      return aoti_torch_dtype_bool();
    case DType::other:
      break;
  }
  fail("weft: no torch dtype for ", name_of(type));
}

inline Sizes sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

inline std::string to_string(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

// A contiguous tensor, uninitialised, on the device of `like`.
inline Tensor empty(const Sizes& sizes, DType dtype, const Tensor& like) {
  int64_t strides[16], numel = 1;
  check(sizes.size() <= 16, "weft: more than 16 dimensions");
  for (int d = static_cast<int>(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = numel;
    numel *= sizes[d] > 1 ? sizes[d] : 1;
  }
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides,
                                                         torch_dtype(dtype), device_type, device_index, &handle));
  return Tensor(handle);
}

// What stands for an output that was not asked for.
inline Tensor absent(const Tensor& like) { return empty({0}, DType::f32, like); }

}  // namespace weft
