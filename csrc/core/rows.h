// Where the rows of a tensor lie, as plain structs hold it.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/inline.h"

namespace weft {

constexpr int kMaxRowDims = 6;

// N rows of C elements each, contiguous within a row; row n begins where its index over the leading
// dimensions says.
struct Rows {
  void* data = nullptr;
  DType dtype = DType::f32;
  int ndim = 1;  // leading dimensions, merged where strides allow
  int64_t size[kMaxRowDims] = {}, stride[kMaxRowDims] = {};  // in elements

  WEFT_INLINE explicit operator bool() const { return data != nullptr; }

  WEFT_INLINE char* row(int64_t n) const {
    const int64_t offset = ndim == 1 ? n * stride[0] : strided_offset(n);
    return static_cast<char*>(data) + offset * static_cast<int64_t>(size_of(dtype));
  }

 private:
  WEFT_INLINE int64_t strided_offset(int64_t n) const {
    int64_t offset = 0;
#pragma GCC unroll 0
    for (int d = ndim - 1; d >= 0; --d) {
      offset += n % size[d] * stride[d];
      n /= size[d];
    }
    return offset;
  }
};

}  // namespace weft
