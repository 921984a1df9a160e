// Four neighbours of a result from their sums, as the kernels of sm_80 end, and all whose sums lie in
// the workspace (epilogue.h).
#pragma once

#include "int8/cuda/epilogue.h"

namespace weft::int8::cuda {

struct FourColumns {
  int64_t n;
  ColumnValues value[4];

  WEFT_DEVICE FourColumns(const Epilogue& e, int64_t first) : n(first) {
    for (int i = 0; i < 4; ++i) value[i] = column_values(e, n + i);
  }
};

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
template <class Sum>
WEFT_DEVICE void finish_four(const Epilogue& e, const Rounding& rounding, int64_t m,
                             const FourColumns& columns, const Vec<Sum, 4>& sums) {
  if (m >= e.M || columns.n >= e.N) return;
  const RowValues row = row_values(e, m);
  if (e.out_dtype == DType::i32) {
    Vec<int32_t, 4> exact;
    for (int i = 0; i < 4; ++i)
      exact[i] = static_cast<int32_t>(without_zero(sums[i], row, columns.value[i]));
    return store_values(e, m, columns.n, exact);
  }
  Vec<float, 4> v;
  for (int i = 0; i < 4; ++i) v[i] = scaled(sums[i], row, columns.value[i]);
  store_four(e, rounding, m, columns.n, v);
}

}  // namespace weft::int8::cuda
