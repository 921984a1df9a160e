// What softcap, ALiBi, bias, mask and dropout make of the scores of sm_90a's backward, and of their
// gradients. Formulas: attention/params.h.
//
// Scores lie keys by queries, in the accumulators of a warpgroup: a thread has two keys, 8 apart, and
// pairs of queries, 8 apart; its element 4 · j + 2 · r + c is of key r and query 8 · j + c. Each is made
// in one go, from the products to what the next ones take, so that nothing of it lies in registers
// meanwhile but s and dp.
#pragma once

#include "attention/cuda/backward_call.h"
#include "attention/cuda/backward_tiles.h"

namespace weft::attention::cuda {

// A thread's scores: the first, and of how many queries the warpgroup has them.
template <uint32_t kQueries>
struct ScoresOfKeys {
  int64_t b;
  int32_t head, query, key;

  static constexpr uint32_t kCount = kQueries / 2;

  WEFT_INLINE static constexpr int32_t query_of(uint32_t n) {
    return static_cast<int32_t>(n / 4 * 8 + n % 2);
  }
  WEFT_INLINE static constexpr int32_t key_of(uint32_t n) {
    return static_cast<int32_t>(n / 2 % 2 * 8);
  }

  // Does dropout keep an element? Its bit of what kept_bits() says.
  WEFT_INLINE static constexpr uint32_t bit_of(uint32_t n) {
    return n / 8 * 8 + n / 2 % 2 * 4 + n / 4 % 2 * 2 + n % 2;
  }
  WEFT_DEVICE uint32_t kept_bits(const Problem& p, const Scoring& scoring) const {
    static_assert(kCount <= 32);
    const PhiloxKey of = philox_key(scoring.state);
    const int64_t first = ((b * p.H + head) * p.S + query) * p.T + key;
    const auto word_is_kept = [&](uint32_t word) { return word >= scoring.threshold ? 1u : 0u; };
    uint32_t bits = 0;
    if (p.T % 4 == 0) {
      // Four keys of a query come of one block of random words: of the four lanes that have them, each
      // draws those of another query, and they share the bits.
      const uint32_t mine = lane() / 4 % 4;
      const auto row = static_cast<int32_t>(mine / 2 * 8 + mine % 2);
      WEFT_NO_UNROLL
      for (uint32_t n = 0; n < kCount; n += 4) {
        const auto at = static_cast<int32_t>(n / 8 * 16) + row;
        const int64_t block = (first + at * p.T + n % 8 * 2 - mine) / 4;
        const Vec<uint32_t, 4> words = philox(of, static_cast<uint64_t>(block));
        WEFT_UNROLL
        for (uint32_t k = 0; k < 4; ++k) bits |= word_is_kept(words[k]) << (n + k);
      }
      uint32_t shared = 0;
      WEFT_UNROLL
      for (uint32_t of_lane = 0; of_lane < 4; ++of_lane) {
        const uint32_t from = (lane() & ~12u) | of_lane * 4;
        shared |= (shuffle(bits, from) >> mine & 0x11111111) << of_lane;
      }
      return shared;
    }
    WEFT_NO_UNROLL
    for (uint32_t n = 0; n < kCount; ++n) {
      const auto at = static_cast<uint64_t>(first + query_of(n) * p.T + key_of(n));
      const Vec<uint32_t, 4> words = philox(of, at / 4);
      const uint32_t in = at % 4;
      bits |= word_is_kept(in < 2    ? (in == 0 ? words[0] : words[1])
                           : in == 2 ? words[2]
                                     : words[3])
              << bit_of(n);
    }
    return bits;
  }

  // s, products of q and k, becomes ds; dp what dropout leaves of p. `seen`: the queries, counted from
  // the thread's first, that see its keys; `rows`: from its first on, shifts, and kQueries behind
  // them δ.
  template <class Scores>
  WEFT_DEVICE void derive(const BackwardCall& call, const Sight& sight, const Span (&seen)[2],
                          Shared<float> rows, Scores& s, Scores& dp) const {
    const Backward& p = call.p;
    const Scoring& scoring = call.scoring;
    const auto log2e = static_cast<float>(kLog2e);
    const uint32_t kept = scoring.drops ? kept_bits(p, scoring) : 0xFFFFFFFF;
    const float slope =
        p.alibi ? load(p.alibi.data + b * p.alibi.batch + head * p.alibi.head) * log2e : 0.0f;
    const int32_t diagonal = query + sight.offset - key;
    WEFT_UNROLL
    for (uint32_t n = 0; n < kCount; ++n) {
      const uint32_t r = n / 2 % 2, c = n % 2;
      const int32_t i = query_of(n), t = key_of(n);
      const bool here = i >= seen[r].begin && i < seen[r].end;
      const float shift = rows[8 * (n / 4) + c], delta = rows[kQueries + 8 * (n / 4) + c];
      float x = s[n] * scoring.before, uncapped = 1;
      if (scoring.cap > 0) {
        const float y = tanh_exact(x);
        uncapped = fma(-y, y, 1.0f);
        x = y * scoring.cap;
      }
      if (p.alibi) {
        const int32_t away = t - i - diagonal;
        x = fma(static_cast<float>(away < 0 ? away : -away), slope, x);
      }
      if (p.bias && here)
        x = fma(load_float(p.bias.at(b, head, query + i, key + t), p.bias.dtype), log2e, x);
      if (p.mask && here)
        if (!load(reinterpret_cast<const uint8_t*>(p.mask.at(b, head, query + i, key + t))))
          x = -__builtin_inff();
      // What is not seen may be anything, NaN too.
      const float weight = here ? exp2_approx(x + shift) : 0.0f;
      const float factor = kept >> bit_of(n) & 1 ? scoring.kept : 0.0f;
      const float ds = here ? weight * fma(dp[n], factor, -delta) : 0.0f;
      if (p.dbias && query + i < sight.S && key + t < sight.T)
        store_float(p.dbias.at(b, head, query + i, key + t), p.dbias.dtype, ds);
      dp[n] = weight * factor;
      s[n] = ds * uncapped;
    }
  }
};

}  // namespace weft::attention::cuda
