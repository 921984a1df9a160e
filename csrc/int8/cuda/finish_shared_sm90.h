// What becomes of sums that pass through shared memory. Plan: gemm_sm90.h.
#pragma once

#include "int8/cuda/multiply_sm90.h"

namespace weft::int8::cuda {

// Multiply: where the sums come from.
template <class S, class Multiply>
class SharedFinish : Multiply {
  using Base = Multiply;
  using Sum = typename S::Sum;
  using Base::call_, Base::smem_;
  using typename Base::Sums;
  using typename Base::T;
  static constexpr uint32_t kBarrier = 1;               // named
  static constexpr int kColumns = S::kColumns / kWarp;  // of a lane

 public:
  WEFT_DEVICE SharedFinish(const T& smem, const GemmSm90& call) : Base(smem, call) {}

  WEFT_DEVICE void run() {
    for_tiles<S>(call_, [&](const TileSm90& t) {
      ColumnValues columns[kColumns];  // asked for before the products, which hide the wait
      const int64_t column = int64_t{t.column} + kColumns * lane();
      WEFT_UNROLL
      for (int i = 0; i < kColumns; ++i) columns[i] = column_values(call_.end, column + i);
      Sums sums;
      this->multiply(sums);
      put(sums);
      meet();
      write(t, column, columns);
      meet();
    });
  }

 private:
  // All that multiply; where K is split, all threads of the cluster.
  WEFT_DEVICE void meet() const {
    if (call_.splits > 1)
      sync_cluster();
    else
      sync_named(kBarrier, 2 * kWarpgroup);
  }

  WEFT_DEVICE void put(const Sums& sums) const {
    const uint32_t first = 64 * this->index_;
    WEFT_UNROLL
    for (uint32_t i = 0; i < Sums::kSize; i += S::kSwapped ? 1 : 2) {
      const Place at = Sums::place(thread() % kWarpgroup, i);
      if constexpr (S::kSwapped)
        smem_.sums[at.column * T::kSumsRow + first + at.row] = sums[i];
      else
        smem_.sums.template store<2>((first + at.row) * T::kSumsRow + at.column,
                                     Vec<Sum, 2>{sums[i], sums[i + 1]});
    }
  }

  // A warp takes a row, a lane neighbours of it; some rows at once, so that their loads wait
  // together.
  WEFT_DEVICE void write(const TileSm90& t, int64_t column,
                         const ColumnValues (&columns)[kColumns]) const {
    const Epilogue& e = call_.end;
    const Rounding rounding(e);
    constexpr uint32_t kAtOnce = S::kRows / T::kWarps < 4 ? 2 : 4;
    const uint32_t step = T::kWarps * call_.splits;
    const uint32_t first = (call_.splits > 1 ? cluster_rank() : 0) * T::kWarps + warp() - 4;
    const int64_t rows = min<int64_t>(e.M - t.row, S::kRows);
    for (uint32_t r = first; r < rows; r += kAtOnce * step) {
      Vec<Sum, kColumns> sums[kAtOnce] = {};
      RowValues row[kAtOnce];
      Vec<float, kColumns> residual[kAtOnce] = {};
      WEFT_UNROLL
      for (uint32_t i = 0; i < kAtOnce; ++i) {
        if (r + i * step >= rows) continue;
        if constexpr (std::is_same_v<Sum, int32_t>)
          row[i] = row_values(e, int64_t{t.row} + r + i * step);
        if (e.residual)
          residual[i] = residual_at<kColumns>(e, int64_t{t.row} + r + i * step, column);
        sums[i] = added_up((r + i * step) * T::kSumsRow + kColumns * lane());
      }
      WEFT_UNROLL
      for (uint32_t i = 0; i < kAtOnce; ++i)
        if (r + i * step < rows)
          store_row(int64_t{t.row} + r + i * step, column,
                    finished(sums[i], row[i], columns, residual[i]), rounding);
    }
  }

  WEFT_DEVICE Vec<float, kColumns> finished(const Vec<Sum, kColumns>& sums,
                                            [[maybe_unused]] const RowValues& row,
                                            const ColumnValues (&columns)[kColumns],
                                            const Vec<float, kColumns>& residual) const {
    const Epilogue& e = call_.end;
    Vec<float, kColumns> v;
    if constexpr (std::is_same_v<Sum, float>) {
      for (int i = 0; i < kColumns; ++i)  // 0 · infinity: such a row is NaN, as everywhere
        v[i] = fma(sums[i] + 0 * sums[i], columns[i].scale, columns[i].bias);
    } else if (e.out_dtype == DType::i32) {
      for (int i = 0; i < kColumns; ++i) v[i] = as_bits(without_zero(sums[i], row, columns[i]));
      return v;
    } else {
      for (int i = 0; i < kColumns; ++i) v[i] = scaled(sums[i], row, columns[i]);
    }
    activate<kColumns>(e.activation, v);
    if (e.residual)
      for (int i = 0; i < kColumns; ++i) v[i] += residual[i];
    return v;
  }

  WEFT_DEVICE void store_row(int64_t m, int64_t column, const Vec<float, kColumns>& v,
                             const Rounding& rounding) const {
    with_result(call_.end.out_dtype, [&](auto type) {
      store_values(call_.end, m, column, rounding.template to<decltype(type)>(v));
    });
  }

  // Of all blocks that split K.
  WEFT_DEVICE Vec<Sum, kColumns> added_up(uint32_t i) const {
    if (call_.splits == 1) return smem_.sums.template load<kColumns>(i);
    Vec<Sum, kColumns> sum = {};
    for (uint32_t rank = 0; rank < call_.splits; ++rank) {
      const auto part = smem_.sums.in_block(rank).template load<kColumns>(i);
      for (int j = 0; j < kColumns; ++j) sum[j] += part[j];
    }
    return sum;
  }
};

}  // namespace weft::int8::cuda
