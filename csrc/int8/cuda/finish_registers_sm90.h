// What becomes of sums that stay in registers. Plan: gemm_sm90.h.
#pragma once

#include "int8/cuda/multiply_sm90.h"

namespace weft::int8::cuda {

template <class S>
class RegisterFinish : Multiplier<S> {
  using Base = Multiplier<S>;
  using typename Base::Sums;
  using typename Base::T;
  using Values = WgmmaAccumulator<float, S::kRight>;
  using Base::call_, Base::smem_;
  static constexpr uint32_t kRows = 16;  // of a warp

 public:
  WEFT_DEVICE RegisterFinish(const T& smem, const GemmSm90& call, const TensorMap& out)
      : Base(smem, call), out_(out), warp_(warp() - 4) {}

  WEFT_DEVICE void run() {
    for_tiles<S>(call_, [&](const TileSm90& t) {
      Sums sums;
      this->multiply(sums);
      finish(t, sums);
    });
    if (elect()) bulk_wait_read<0>();
  }

 private:
  WEFT_DEVICE void finish(const TileSm90& t, const Sums& sums) {
    const Epilogue& e = call_.end;
    Values v;
    if (e.out_dtype == DType::i32)
      e.x_zero_point ? apply<true, true>(t, sums, v) : apply<true, false>(t, sums, v);
    else
      e.x_zero_point ? apply<false, true>(t, sums, v) : apply<false, false>(t, sums, v);
    activate<Values::kSize>(e.activation, v);
    if (e.residual) add_residual(t, v);
    with_result(e.out_dtype, [&](auto type) { write<decltype(type)>(t, v); });
  }

  // Where this thread's i-th value belongs.
  WEFT_DEVICE int64_t row_of(const TileSm90& t, uint32_t i) const {
    return int64_t{t.row} + warp_ * kRows + FragmentC<float>::place(lane(), i % 4).row;
  }
  WEFT_DEVICE static uint32_t column_in(uint32_t i) {
    return i / 4 * 8 + FragmentC<float>::place(lane(), i % 4).column;
  }

  // Sums in floats, or, where they themselves are asked for, as they are.
  template <bool kExact, bool kZero>
  WEFT_DEVICE void apply(const TileSm90& t, const Sums& sums, Values& v) {
    const Epilogue& e = call_.end;
    const RowValues rows[2] = {row_values(e, row_of(t, 0)), row_values(e, row_of(t, 2))};
    mbarrier_wait(smem_.columns_full, columns_parity_);
    columns_parity_ ^= 1;
    WEFT_UNROLL
    for (uint32_t j = 0; j < Values::kSize; j += 4) {
      const uint32_t c = column_in(j);
      const Vec<float, 2> scale = smem_.scale.template load<2>(c),
                          bias = smem_.bias.template load<2>(c);
      Vec<int32_t, 2> weight_sum = {};
      if constexpr (kZero) {
        for (uint32_t i = 0; i < 2; ++i)
          if (t.column + c + i < e.N) weight_sum[i] = load(e.weight_sum + t.column + c + i);
      }
      WEFT_UNROLL
      for (uint32_t i = 0; i < 4; ++i) {
        const ColumnValues column = {scale[i % 2], bias[i % 2], weight_sum[i % 2]};
        v[j + i] = kExact ? as_bits(without_zero(sums[j + i], rows[i / 2], column))
                          : scaled(sums[j + i], rows[i / 2], column);
      }
    }
    sync_warp();
    if (elect()) mbarrier_arrive(smem_.columns_empty);
  }

  // By rows into the warp's places, in floats, and from there to whom they belong.
  WEFT_DEVICE void add_residual(const TileSm90& t, Values& v) const {
    const Shared<float> place = smem_.places(warp_).template as<float>();
    WEFT_UNROLL
    for (uint32_t column = 0; column < S::kColumns; column += 64) {
      if (elect()) bulk_wait_read<0>();
      sync_warp();
      fetch_residual(t.row + static_cast<int32_t>(warp_ * kRows),
                     t.column + static_cast<int32_t>(column), place);
      sync_warp();
      WEFT_UNROLL
      for (uint32_t i = 0; i < 32; i += 2) {
        const Place at = FragmentC<float>::place(lane(), i % 4);
        const auto pair = place.template load<2>(Quarter::index(at.row, i / 4 * 8 + at.column));
        // Added here, not where v is used: both would take registers until then.
        v[column / 2 + i] = settled(v[column / 2 + i] + pair[0]);
        v[column / 2 + i + 1] = settled(v[column / 2 + i + 1] + pair[1]);
      }
    }
  }

  WEFT_DEVICE static float settled(float x) {
    int32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return as_bits(opaque(bits));
  }

  // 64 columns of the warp's rows, four neighbours a lane; at once where all of them are there.
  using Quarter = MatrixTile<float, Major::k, Swizzle::bytes128, kRows, 64>;
  WEFT_DEVICE void fetch_residual(int32_t row, int32_t column, Shared<float> place) const {
    const Epilogue& e = call_.end;
    const Rows& residual = e.residual;
    const uint32_t r = lane() / 16, c = lane() % 16 * 4;
    const int64_t m = int64_t{row} + r, n = int64_t{column} + c;
    if (residual.ndim == 1 && e.residual_vector >= 4 && row + int32_t{kRows} <= e.M &&
        column + 64 <= e.N) {
      with_float(residual.dtype, [&](auto type) {
        using R = decltype(type);
        const int64_t step = residual.stride[0];
        const R* from = static_cast<const R*>(residual.data) + m * step + n;
        WEFT_UNROLL
        for (uint32_t i = 0; i < kRows; i += 8) {
          Vec<R, 4> part[4];
          WEFT_UNROLL
          for (uint32_t j = 0; j < 4; ++j) part[j] = load<4>(from + (i + 2 * j) * step);
          WEFT_UNROLL
          for (uint32_t j = 0; j < 4; ++j)
            place.template store<4>(Quarter::index(i + 2 * j + r, c), convert<float>(part[j]));
        }
      });
    } else {
      WEFT_NO_UNROLL
      for (uint32_t i = 0; i < kRows; i += 2)
        place.template store<4>(Quarter::index(i + r, c), residual_at<4>(e, m + i, n));
    }
  }

  // Pieces of 128 bytes of the warp's rows, each through the place that is free.
  template <class R>
  WEFT_DEVICE void write(const TileSm90& t, const Values& v) {
    constexpr uint32_t kPiece = 128 / sizeof(R);
    const Rounding rounding(call_.end);
    const auto row = t.row + static_cast<int32_t>(warp_ * kRows);
    WEFT_UNROLL
    for (uint32_t p = 0; p < S::kColumns / kPiece; ++p) {
      const auto column = t.column + static_cast<int32_t>(p * kPiece);
      const Shared<R> place = smem_.place(warp_, p % T::kPlaces).template as<R>();
      if (elect()) bulk_wait_read<T::kPlaces - 1>();
      sync_warp();
      put<R>(place, v, p * kPiece / 2, rounding);
      if (call_.tensor_out) {
        fence_async();
        sync_warp();
        if (elect()) {
          if (row < call_.end.M && column < call_.end.N) tensor_store(out_, {column, row}, place);
          bulk_commit();
        }
      } else {
        sync_warp();
        write_rows<R>(row, column, place);
      }
    }
  }

  template <class R>
  using Piece = MatrixTile<R, Major::k, Swizzle::bytes128, kRows, 128 / sizeof(R)>;

  // Values from `first` on, for 16 rows of 128 bytes.
  template <class R>
  WEFT_DEVICE static void put(Shared<R> place, const Values& v, uint32_t first,
                              const Rounding& rounding) {
    constexpr uint32_t kPiece = 128 / sizeof(R);
    if constexpr (sizeof(R) == 2) {
      const Place named = FragmentA<R>::named(lane());
      WEFT_UNROLL
      for (uint32_t k = 0; k < kPiece; k += 16)
        stmatrix<4>(place, Piece<R>::index(named.row, k + named.column),
                    fragment_a<R>(v, (2 * first + k) / 16).words);
    } else {
      WEFT_UNROLL
      for (uint32_t i = 0; i < kPiece / 2; i += 2) {
        const Place at = FragmentC<float>::place(lane(), i % 4);
        place.template store<2>(
            Piece<R>::index(at.row, i / 4 * 8 + at.column),
            rounding.template to<R>(Vec<float, 2>{v[first + i], v[first + i + 1]}));
      }
    }
  }

  template <class R>
  WEFT_DEVICE void write_rows(int32_t row, int32_t column, Shared<R> place) const {
    constexpr int kCount = 4 / sizeof(R);
    WEFT_NO_UNROLL
    for (uint32_t r = 0; r < kRows; ++r)
      store_values(call_.end, int64_t{row} + r, int64_t{column} + kCount * lane(),
                   place.template load<kCount>(Piece<R>::index(r, kCount * lane())));
  }

  const TensorMap& out_;
  const uint32_t warp_;  // among those that multiply
  uint32_t columns_parity_ = 0;
};

}  // namespace weft::int8::cuda
