// Σ_k x[m, k] · w[n, k] of 16-bit x and int8 w with Hopper's warpgroup products, M×N×K; then
// activation(Σ · weight_scale[n] + bias[n]) + residual[m, n].
//
// Plan. As gemm_sm90.h's for few rows: the weight is the left operand, whose 128 rows come in int8, 128
// of K at a time. A warpgroup reads its 64 rows from shared memory, widens them in registers, exactly,
// as A of eight wgmma a stage, and waits for these; meanwhile the other warpgroup widens.
//
// Cost: a stage has 16 KiB of the weight, for which a warp has some 250 instructions beside its
// products, two of them on each scheduler. Bound by the weight's bytes up to 64 rows of x; for more,
// 128 rows take 1024 cycles of the tensor cores a stage, and each block of rows reads the weight anew,
// through L2.
#pragma once

#include "int8/cuda/multiply_sm90.h"

namespace weft::int8::cuda {

template <class S>
class WideningMultiplier : protected Multiplier<S> {
 protected:
  using Base = Multiplier<S>;
  using typename Base::Sums;
  using typename Base::T;
  using X = typename S::Element;
  static constexpr uint32_t kProducts = S::kDepth / 16;
  using Stage = FragmentA<X>[kProducts];
  using Base::smem_, Base::call_, Base::steps_, Base::turn_;

  WEFT_DEVICE WideningMultiplier(const T& smem, const GemmSm90& call) : Base(smem, call) {}

  WEFT_DEVICE void multiply(Sums& sums) {
    Stage a;
    wgmma_fence(sums);
    for (uint32_t k = steps_.begin; k < steps_.end; ++k, turn_.next()) {
      const uint32_t stage = turn_.stage;
      mbarrier_wait(smem_.full.from(stage), turn_.parity);
      widen(smem_.left_of(stage), a);
      wgmma_fence(a);
      WEFT_UNROLL
      for (uint32_t i = 0; i < kProducts; ++i)
        wgmma(sums, a[i], T::Right::descriptor(smem_.right_of(stage), 0, 16 * i),
              k > steps_.begin || i > 0);
      wgmma_commit();
      wgmma_wait<0>(a);
      this->release(stage);
    }
    wgmma_wait<0>(sums);
  }

 private:
  // Of the warp's 16 rows.
  WEFT_DEVICE void widen(Shared<int8_t> left, Stage& a) const {
    const uint32_t first = 64 * this->index_ + thread() % kWarpgroup / kWarp * 16;
    WEFT_UNROLL
    for (uint32_t i = 0; i < kProducts; ++i) {
      WEFT_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        const Place at = FragmentA<X>::place(lane(), 2 * j);
        const auto q = left.template load<2>(T::Left::index(first + at.row, 16 * i + at.column));
        a[i].words[j] =
            weft::gpu::detail::packed<X>(static_cast<float>(q[0]), static_cast<float>(q[1]));
      }
    }
    sync_warp();  // all lanes have read before one of them gives the stage back
  }
};

}  // namespace weft::int8::cuda
