// The sum of what the warps of a block leave of 16 rows that they share, each over keys of its own:
//
//   max = max over w of max_w,  sum = Σ 2^(max_w - max) · sum_w,  o = Σ 2^(max_w - max) · o_w
//
// in the order of the warps: the same bits each time. Each warp leaves its part in shared memory, in the
// order of its registers, and adds up all parts of a share of the columns. Cost: each o_w is written
// and read once, 64 · kDv bytes; two barriers a block.
#pragma once

#include "attention/cuda/scores.h"
#include "attention/cuda/tiles.h"

namespace weft::attention::cuda {

constexpr uint32_t kStatesOfWarp = 2 * 16;  // {max, sum} of each row

// The columns of a warp from first() on. Of its sums, other lanes of a quad have none.
template <int kWarps, int kDv>
struct Joined {
  static constexpr int kOwn = kDv / kWarps;
  Softmax<2> softmax;
  Fragments<1, kOwn> o;

  WEFT_DEVICE int32_t first() const { return static_cast<int32_t>(warp()) * kOwn; }

  // parts: [kWarps, 16 · kDv], free for all warps behind a barrier.
  WEFT_DEVICE Joined(const Softmax<2>& own, const Fragments<1, kDv>& own_o, Shared<float> states,
                     Shared<float> parts) {
    static_assert(kOwn % 8 == 0);
    const auto state = [](uint32_t w, uint32_t r) { return 2 * (w * 16 + r * 8 + lane() / 4); };
    const auto part = [](uint32_t w, uint32_t n, uint32_t r) {
      return 2 * (((w * (kDv / 8) + n) * 2 + r) * kWarp + lane());
    };
    sync_block();
    WEFT_UNROLL
    for (uint32_t r = 0; r < 2; ++r) {
      const float sum = warp_sum<4>(own.sum[r]);
      if (lane() % 4 == 0)
        states.template store<2>(state(warp(), r), Vec<float, 2>{{own.max[r], sum}});
      WEFT_UNROLL
      for (uint32_t n = 0; n < kDv / 8; ++n) {
        const FragmentC<float>& c = own_o.c[0][n];
        parts.template store<2>(part(warp(), n, r), Vec<float, 2>{{c[2 * r], c[2 * r + 1]}});
      }
    }
    sync_block();
    o.clear();
    WEFT_UNROLL
    for (uint32_t r = 0; r < 2; ++r) {
      Vec<float, 2> of[kWarps];
      float most = -__builtin_inff(), sum = 0;
      WEFT_UNROLL
      for (uint32_t w = 0; w < kWarps; ++w) {
        of[w] = states.template load<2>(state(w, r));
        most = max_nan(most, of[w][0]);
      }
      const float base = most == -__builtin_inff() ? 0.0f : most;
      WEFT_UNROLL
      for (uint32_t w = 0; w < kWarps; ++w) {
        const float factor = exp2_approx(of[w][0] - base);
        sum = fma(factor, of[w][1], sum);
        WEFT_UNROLL
        for (uint32_t n = 0; n < kOwn / 8; ++n) {
          const Vec<float, 2> pair = parts.template load<2>(part(w, warp() * (kOwn / 8) + n, r));
          FragmentC<float>& c = o.c[0][n];
          c[2 * r] = fma(factor, pair[0], c[2 * r]);
          c[2 * r + 1] = fma(factor, pair[1], c[2 * r + 1]);
        }
      }
      softmax.max[r] = most;
      softmax.sum[r] = lane() % 4 == 0 ? sum : 0.0f;
    }
  }
};

}  // namespace weft::attention::cuda
