// What becomes of an int8 product's sums: one text for all kernels, so that a row has the same bits
// in each of them.
//
//   v = (Σ - x_zero_point[m] · weight_sum[n]) · weight_scale[n] · x_scale[m] + bias[n]
//   y = activation(v) + residual[m, n]
//
// A kernel asks for the values of its rows and columns, applies them to the sums in its registers,
// and stores pairs or fours of neighbours. weight_sum[n] = Σ_k w[n, k].
#pragma once

#include "int8/cuda/activation.h"

namespace weft::int8::cuda {

struct RowValues {
  float scale = 0;
  int32_t zero_point = 0;
};
struct ColumnValues {
  float scale = 0, bias = 0;
  int32_t sum = 0;
};

// What a call's products end with, as the kernels get it.
struct Epilogue {
  int64_t M = 0, N = 0;
  const float* x_scale = nullptr;
  const int32_t* x_zero_point = nullptr;  // null: 0
  int64_t x_scale_row = 0;                // stride of both
  GroupValues weight_scale;
  const int32_t* weight_sum = nullptr;  // [N]; read where there are zero points
  const void* bias = nullptr;           // [N]
  DType bias_dtype = DType::f32;
  Activation activation = Activation::none;
  Rows residual;
  uint32_t residual_vector = 1;  // its rows begin at multiples of so many elements: 1, 2 or 4
  void* out = nullptr;           // [M, N]
  DType out_dtype = DType::f32;
  uint32_t out_vector = 1;  // likewise
  const float* out_scale = nullptr;
  int32_t out_zero_point = 0;
};

// f(T{}) for the type of a tensor of floats.
template <class F>
WEFT_DEVICE void with_float(DType type, const F& f) {
  if (type == DType::bf16)
    f(bf16{});
  else if (type == DType::f16)
    f(f16{});
  else
    f(float{});
}

WEFT_DEVICE float load_as_float(const void* data, DType type, int64_t i) {
  float v = 0;
  with_float(type,
             [&](auto t) { v = convert<float>(load(static_cast<const decltype(t)*>(data) + i)); });
  return v;
}

// Rows and columns outside of the result have zeros.
WEFT_DEVICE RowValues row_values(const Epilogue& e, int64_t m) {
  if (m >= e.M) return {};
  const int64_t i = m * e.x_scale_row;
  return {load(e.x_scale + i), e.x_zero_point ? load(e.x_zero_point + i) : 0};
}
WEFT_DEVICE ColumnValues column_values(const Epilogue& e, int64_t n) {
  if (n >= e.N) return {};
  return {load(e.weight_scale.data + n * e.weight_scale.column),
          e.bias ? load_as_float(e.bias, e.bias_dtype, n) : 0.0f,
          e.x_zero_point ? load(e.weight_sum + n) : 0};
}

// Exact: |Σ| and the correction are below 2^31 for K up to 65536, and below 2^38 for all K.
template <class Sum>
WEFT_DEVICE Sum without_zero(Sum sum, const RowValues& row, const ColumnValues& column) {
  return sum - Sum{row.zero_point} * column.sum;
}
// Where the sums themselves are asked for: their bits, which float registers then carry.
WEFT_DEVICE float as_bits(int32_t sum) {
  float v;
  __builtin_memcpy(&v, &sum, sizeof v);
  return v;
}
template <class Sum>
WEFT_DEVICE float scaled(Sum sum, const RowValues& row, const ColumnValues& column) {
  return fma(static_cast<float>(without_zero(sum, row, column)) * column.scale, row.scale,
             column.bias);
}

// residual[m, n … n + kCount), zeros where there is none. n is a multiple of kCount.
template <int kCount>
WEFT_DEVICE Vec<float, kCount> residual_at(const Epilogue& e, int64_t m, int64_t n) {
  Vec<float, kCount> v = {};
  if (m >= e.M) return v;
  const char* row = e.residual.row(m);
  with_float(e.residual.dtype, [&](auto type) {
    const auto* from = reinterpret_cast<const decltype(type)*>(row) + n;
    if (e.residual_vector >= kCount && n + kCount <= e.N) {
      v = convert<float>(load<kCount>(from));
    } else {
      for (int i = 0; i < kCount; ++i)
        if (n + i < e.N) v[i] = convert<float>(load(from + i));
    }
  });
  return v;
}

// Floats as they are stored: in bf16, f16, float, or int8, to nearest, ties to even, where NaN
// becomes the zero point.
class Rounding {
 public:
  WEFT_DEVICE explicit Rounding(const Epilogue& e)
      : inverse_(e.out_dtype == DType::i8 ? 1.0f / load(e.out_scale) : 0.0f),
        least_(static_cast<float>(-128 - e.out_zero_point)),
        most_(static_cast<float>(127 - e.out_zero_point)),
        zero_(e.out_zero_point) {}

  template <class T, int kCount>
  WEFT_DEVICE Vec<T, kCount> to(const Vec<float, kCount>& v) const {
    if constexpr (!std::is_same_v<T, int8_t>) {
      return convert<T>(v);
    } else {
      Vec<int8_t, kCount> q;
      for (int i = 0; i < kCount; ++i) {
        float x = v[i] * inverse_;
        x = x == x ? x : 0.0f;
        x = min(max(x, least_), most_) + 0x1.8p23f;  // its low bits: the nearest integer
        int32_t bits;
        __builtin_memcpy(&bits, &x, sizeof bits);
        q[i] = static_cast<int8_t>(bits - 0x4B400000 + zero_);
      }
      return q;
    }
  }

 private:
  float inverse_, least_, most_;
  int32_t zero_;
};

// out[m, n … n + kCount), of which those from N on are not there. n is a multiple of kCount.
template <class T, int kCount>
WEFT_DEVICE void store_values(const Epilogue& e, int64_t m, int64_t n, const Vec<T, kCount>& v) {
  if (m >= e.M) return;
  T* to = static_cast<T*>(e.out) + m * e.N + n;
  if (e.out_vector >= kCount && n + kCount <= e.N) {
    store(to, v);
  } else {
    for (int i = 0; i < kCount; ++i)
      if (n + i < e.N) store(to + i, v[i]);
  }
}

// f(T{}) for the type of the result; of int32, whose bits are in floats, float.
template <class F>
WEFT_DEVICE void with_result(DType type, const F& f) {
  if (type == DType::i8)
    f(int8_t{});
  else
    with_float(type, f);
}

}  // namespace weft::int8::cuda
