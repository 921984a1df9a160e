// Four neighbours of a result from their sums, as the kernels of sm_80 end (epilogue.h), with the
// columns of x that hold outliers: v += Σ_k x[m, k] · w[n, k] · weight_scale[n] over these.
#pragma once

#include "int8/cuda/epilogue.h"

namespace weft::int8::cuda {

// The columns of x that hold any, in ascending order.
struct Outliers {
  const int32_t* count = nullptr;    // null: nobody has looked for any
  const int32_t* columns = nullptr;  // [count]
};

struct Ending {
  Epilogue end;
  Outliers outliers;
  Rows x;                          // with outliers: [M, K] of floats
  const int8_t* weight = nullptr;  // likewise, in rows of weight_row bytes
  int64_t weight_row = 0;
};

struct FourColumns {
  int64_t n;
  ColumnValues value[4];

  WEFT_DEVICE FourColumns(const Epilogue& e, int64_t first) : n(first) {
    for (int i = 0; i < 4; ++i) value[i] = column_values(e, n + i);
  }
};

WEFT_DEVICE void add_outliers(const Ending& ending, int64_t m, const FourColumns& columns,
                              Vec<float, 4>& v) {
  const int32_t count = load(ending.outliers.count);
  const char* const row = ending.x.row(m);
  const int64_t left = ending.end.N - columns.n;
  for (int32_t i = 0; i < count; ++i) {
    const int64_t k = load(ending.outliers.columns + i);
    const float x = load_as_float(row, ending.x.dtype, k);
    WEFT_UNROLL
    for (int j = 0; j < 4; ++j)
      if (j < left) {
        const int8_t w = load(ending.weight + (columns.n + j) * ending.weight_row + k);
        v[j] = fma(static_cast<float>(w) * columns.value[j].scale, x, v[j]);
      }
  }
}

// What follows the product and the bias.
WEFT_DEVICE void store_four(const Epilogue& e, const Rounding& rounding, int64_t m, int64_t n,
                            Vec<float, 4>& v) {
  activate<4>(e.activation, v);
  if (e.residual) {
    const Vec<float, 4> more = residual_at<4>(e, m, n);
    for (int i = 0; i < 4; ++i) v[i] += more[i];
  }
  with_result(e.out_dtype, [&](auto type) {
    using T = decltype(type);
    store_values(e, m, n, rounding.to<T>(v));
  });
}

// Rows and columns from M and N on are not there.
WEFT_DEVICE void finish_four(const Ending& ending, const Rounding& rounding, int64_t m,
                             const FourColumns& columns, const Vec<int32_t, 4>& sums) {
  const Epilogue& e = ending.end;
  if (m >= e.M || columns.n >= e.N) return;
  const RowValues row = row_values(e, m);
  if (e.out_dtype == DType::i32) {
    Vec<int32_t, 4> exact;
    for (int i = 0; i < 4; ++i) exact[i] = without_zero(sums[i], row, columns.value[i]);
    return store_values(e, m, columns.n, exact);
  }
  Vec<float, 4> v;
  for (int i = 0; i < 4; ++i) v[i] = scaled(sums[i], row, columns.value[i]);
  if (ending.outliers.count) add_outliers(ending, m, columns, v);
  store_four(e, rounding, m, columns.n, v);
}

}  // namespace weft::int8::cuda
