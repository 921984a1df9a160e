// torch tensors through the stable ABI: dtypes, allocation, and the words in which arguments are
// refused.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "core/dtype.h"
#include "core/error.h"
#include "core/rows.h"

namespace weft {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A shape, on the stack: a small op spends more on the heap than on arithmetic.
class Sizes {
 public:
  static constexpr int kMost = 16;

  Sizes() = default;
  Sizes(std::initializer_list<int64_t> sizes) : Sizes(sizes.begin(), sizes.end()) {}
  Sizes(const int64_t* begin, const int64_t* end) : size_(static_cast<int>(end - begin)) {
    check(size_ <= kMost, "weft: a tensor has ", size_, " dimensions, expected at most ", kMost);
    std::copy(begin, end, data_);
  }
  int size() const { return size_; }
  const int64_t* data() const { return data_; }
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + size_; }
  int64_t operator[](int d) const { return data_[d]; }
  int64_t& operator[](int d) { return data_[d]; }
  void push_back(int64_t size) {
    check(size_ < kMost, "weft: a tensor has more than ", kMost, " dimensions");
    data_[size_++] = size;
  }
  bool operator==(const Sizes& other) const {
    return size_ == other.size_ && std::equal(begin(), end(), other.begin());
  }

 private:
  int64_t data_[kMost];
  int size_ = 0;
};

// Beyond this an output is worth huge pages: touching fresh memory in 4 KiB pages is several times
// slower than the kernels.
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
  return Sizes(sizes.data(), sizes.data() + sizes.size());
}

// Messages are made of the sizes themselves: text would be made on every call.
inline std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  out << '[';
  for (int i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  return out << ']';
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty_strided(const Sizes& sizes, const int64_t* strides, DType dtype,
                            const Tensor& like) {
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.size(), sizes.data(), strides, torch_dtype(dtype), device_type, device_index, &handle));
  return Tensor(handle);
}

// The same, contiguous.
inline Tensor empty(const Sizes& sizes, DType dtype, const Tensor& like) {
  int64_t strides[Sizes::kMost], numel = 1;
  for (int d = sizes.size() - 1; d >= 0; --d) {
    strides[d] = numel;
    numel *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return empty_strided(sizes, strides, dtype, like);
}

// A copy of t in the host's memory, contiguous. Waits for what t is made of.
inline Tensor on_host(const Tensor& t) {
  const Sizes sizes = sizes_of(t);
  int64_t strides[Sizes::kMost], numel = 1;
  for (int d = sizes.size() - 1; d >= 0; --d) {
    strides[d] = numel;
    numel *= sizes[d];
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides,
                                                         torch_dtype(dtype_of(t)),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor copy(handle);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(handle, t.get(), /*non_blocking=*/0));
  return copy;
}

// Where the rows of t lie, the leading dimensions merged where strides allow; false if a copy is
// needed.
inline bool view_rows(const Tensor& t, int leading, Rows& rows) {
  const Sizes sizes = sizes_of(t);
  const auto strides = t.strides();
  int64_t expected = 1;
  for (int d = sizes.size() - 1; d >= leading; --d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  rows = {const_cast<void*>(t.const_data_ptr()), dtype_of(t), 0, {}, {}};
  for (int d = 0; d < leading; ++d) {
    if (sizes[d] == 1) continue;
    if (rows.ndim > 0 && rows.stride[rows.ndim - 1] == sizes[d] * strides[d]) {
      rows.size[rows.ndim - 1] *= sizes[d];
      rows.stride[rows.ndim - 1] = strides[d];
      continue;
    }
    if (rows.ndim == kMaxRowDims) return false;
    rows.size[rows.ndim] = sizes[d];
    rows.stride[rows.ndim++] = strides[d];
  }
  if (rows.ndim == 0) rows.ndim = 1;  // a single row
  return true;
}

// What stands for an output that was not asked for.
inline Tensor absent(const Tensor& like) { return empty({0}, DType::f32, like); }

}  // namespace weft
