// Ends products whose sums lie in the workspace: of splits of K, of more of it than int32 holds, and of
// columns of x with outliers, k_0 … k_count-1, which no int8 product has.
//
//   Σ[m, n] = totals[m, n] + Σ_s parts[s, m, n]                                               int64
//   v = (Σ - x_zero_point[m] · weight_sum[n]) · weight_scale[n] · x_scale[m] + bias[n]
//         + Σ_i x[m, k_i] · w[n, k_i] · weight_scale[n]
//   y = activation(v) + residual[m, n]
//
// Plan. finish_parts_kernel: four columns a thread; of all rounds but the last, Σ becomes totals.
// finish_outliers_kernel: a block takes 64 rows by 128 columns, a thread 8 rows by four neighbours; 32
// outliers at a time, as floats through shared memory: of a weight the bytes lie K apart, and each
// is fetched once for 64 rows. Then a row after the other ends.
//
// Cost: 4 bytes a part and a result, read once; 8 of totals, twice. An outlier costs a sector of 32
// bytes of the weight for each column and block of rows, through L2, and M · N products of floats.
// Bound by memory, with many outliers by L2. So both product kernels can be had in front of it: to
// add outliers in the product's own pass would save 8 bytes a result, and take the shared memory
// that the widest tile of sm_90a fills with stages.
#pragma once

#include "int8/cuda/finish.h"

namespace weft::int8::cuda {

struct FinishParts {
  Epilogue end;
  const int32_t* parts = nullptr;  // [splits, M, N]
  uint32_t splits = 1;
  int64_t* totals = nullptr;       // [M, N], where there are several rounds
  bool first = true, last = true;  // of these
};

// Of columns n … n + 3, a multiple of 4.
WEFT_DEVICE Vec<int64_t, 4> sums_at(const FinishParts& call, int64_t m, int64_t n) {
  const Epilogue& e = call.end;
  const bool vector = e.N % 4 == 0;
  const int64_t at = m * e.N + n;
  Vec<int64_t, 4> sums = {};
  for (uint32_t s = 0; s < call.splits; ++s) {
    const int32_t* const from = call.parts + s * e.M * e.N + at;
    Vec<int32_t, 4> part = {};
    if (vector) {
      part = load<4>(from);
    } else {
      for (int j = 0; j < 4; ++j)
        if (n + j < e.N) part[j] = load(from + j);
    }
    for (int j = 0; j < 4; ++j) sums[j] += part[j];
  }
  if (!call.first)
    for (int j = 0; j < 4; ++j)
      if (n + j < e.N) sums[j] += load(call.totals + at + j);
  return sums;
}

constexpr uint32_t kFinishThreads = 128;

WEFT_KERNEL_BOUNDS(kFinishThreads, 1)
void finish_parts_kernel(WEFT_GRID_CONSTANT const FinishParts call) {
  const Epilogue& e = call.end;
  const int64_t fours = ceil_div(e.N, 4),
                i = static_cast<int64_t>(block().x) * kFinishThreads + thread(), m = i / fours,
                n = i % fours * 4;
  if (m >= e.M) return;
  const Vec<int64_t, 4> sums = sums_at(call, m, n);
  if (call.last) return finish_four(e, Rounding(e), m, FourColumns(e, n), sums);
  for (int j = 0; j < 4; ++j)
    if (n + j < e.N) store(call.totals + m * e.N + n + j, sums[j]);
}

// ---- outliers

struct FinishOutliers {
  FinishParts sums;
  Rows x;                          // [M, K] of floats
  const int8_t* weight = nullptr;  // [N, K] in rows of weight_row bytes
  int64_t weight_row = 0;
  const int32_t *count = nullptr, *columns = nullptr;  // of x, that hold any: [count], ascending
};

constexpr uint32_t kOutlierRows = 64, kOutlierColumns = 128, kOutliersAtOnce = 32,
                   kOutlierThreads = 256, kOutlierWarps = kOutlierThreads / kWarp,
                   kOwnRows = kOutlierRows / kOutlierWarps;  // of a thread, kOutlierWarps apart

struct OutliersShared {
  static constexpr uint32_t kW = kOutliersAtOnce * kOutlierColumns,
                            kX = kOutliersAtOnce * kOutlierRows,
                            kSums = kOutlierRows * kOutlierColumns;
  static_assert(kW + kX <= kSums);

  SharedLayout layout;
  Shared<float> sums = layout.take<float>(kSums);  // four of a thread together; before them:
  Shared<float> w = Shared<float>(sums.offset(), kW),
                x = Shared<float>(sums.offset() + w.bytes(), kX);
};

// Outliers first … first + here - 1, of rows from m on and columns from n on, where these are.
WEFT_DEVICE void bring_outliers(const FinishOutliers& call, const OutliersShared& smem, int64_t m,
                                int64_t n, int32_t first, uint32_t here) {
  const Epilogue& e = call.sums.end;
  static_assert(kOutlierThreads % kOutlierColumns == 0 && kOutlierThreads % kOutlierRows == 0);
  const uint32_t column = thread() % kOutlierColumns, row = thread() % kOutlierRows;
  const ColumnValues of_column = column_values(e, n + column);
  const int8_t* const weight = call.weight + (n + column) * call.weight_row;
  for (uint32_t i = thread() / kOutlierColumns; i < here; i += kOutlierThreads / kOutlierColumns) {
    const int64_t k = load(call.columns + first + i);
    const float w = n + column < e.N ? static_cast<float>(load(weight + k)) : 0.0f;
    smem.w[i * kOutlierColumns + column] = w * of_column.scale;
  }
  const char* const x = m + row < e.M ? call.x.row(m + row) : nullptr;
  for (uint32_t i = thread() / kOutlierRows; i < here; i += kOutlierThreads / kOutlierRows) {
    const int64_t k = load(call.columns + first + i);
    smem.x[i * kOutlierRows + row] = x ? load_as_float(x, call.x.dtype, k) : 0.0f;
  }
}

WEFT_KERNEL_BOUNDS(kOutlierThreads, 1)
void finish_outliers_kernel(WEFT_GRID_CONSTANT const FinishOutliers call) {
  const OutliersShared smem;
  const Epilogue& e = call.sums.end;
  const int64_t tiles_m = ceil_div(e.M, kOutlierRows), m0 = block().x % tiles_m * kOutlierRows,
                n0 = block().x / tiles_m * kOutlierColumns, n = n0 + lane() * 4;
  const auto row_of = [&](uint32_t i) { return m0 + warp() + i * kOutlierWarps; };
  Vec<float, 4> sums[kOwnRows] = {};
  const int32_t count = load(call.count);
  WEFT_NO_UNROLL
  for (int32_t first = 0; first < count; first += kOutliersAtOnce) {
    const auto here = static_cast<uint32_t>(min<int32_t>(count - first, kOutliersAtOnce));
    sync_block();  // all have used those before
    bring_outliers(call, smem, m0, n0, first, here);
    sync_block();
    WEFT_NO_UNROLL
    for (uint32_t k = 0; k < here; ++k) {
      const Vec<float, 4> w = smem.w.load<4>(k * kOutlierColumns + lane() * 4);
      WEFT_UNROLL
      for (uint32_t i = 0; i < kOwnRows; ++i) {
        const float x = smem.x[k * kOutlierRows + warp() + i * kOutlierWarps];
        for (int j = 0; j < 4; ++j) sums[i][j] = fma(w[j], x, sums[i][j]);
      }
    }
  }
  sync_block();

  // By way of shared memory, so that what ends a row stands here once.
  const auto place = [&](uint32_t i) { return (i * kOutlierThreads + thread()) * 4; };
  WEFT_UNROLL
  for (uint32_t i = 0; i < kOwnRows; ++i) smem.sums.store<4>(place(i), sums[i]);
  const FourColumns columns(e, n);
  const Rounding rounding(e);
  WEFT_NO_UNROLL
  for (uint32_t i = 0; i < kOwnRows; ++i) {
    const int64_t m = row_of(i);
    if (m >= e.M || n >= e.N) break;
    Vec<float, 4> v = smem.sums.load<4>(place(i));
    const Vec<int64_t, 4> exact = sums_at(call.sums, m, n);
    const RowValues row = row_values(e, m);
    for (int j = 0; j < 4; ++j) v[j] += scaled(exact[j], row, columns.value[j]);
    store_four(e, rounding, m, n, v);
  }
}

}  // namespace weft::int8::cuda
