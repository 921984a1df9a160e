// A block of scores between the two products, in registers: what the options make of them, and the
// online softmax over them.
//
// A thread holds pairs of rows of accumulators, of mma as of wgmma: its element j of a row stands in
// column 8 · (j / 2) + lane % 4 · 2 + j % 2 of the block (FragmentC), and the four lanes of a quad
// share each row. Functions take the scores as s(r, j): a reference to element j of the thread's
// row r.
#pragma once

#include "attention/cuda/sequences.h"

namespace weft::attention::cuda {

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

WEFT_DEVICE constexpr uint32_t column_of(uint32_t lane, uint32_t j) {
  return j / 2 * 8 + lane % 4 * 2 + j % 2;
}

WEFT_DEVICE float load_float(const void* from, DType dtype) {
  if (dtype == DType::f32) return load(static_cast<const float*>(from));
  if (dtype == DType::bf16) return to_float(load(static_cast<const bf16*>(from)));
  return to_float(load(static_cast<const f16*>(from)));
}

// A row of a block: query i of head h.
struct Row {
  int32_t i, h;
};

// The options as kernels want them. Where `changes`, change() makes of products what softmax sees,
// in units of log 2; else softmax multiplies it with `scale`.
struct Scoring {
  float scale = 1;
  float before = 1, cap = 0;  // s = cap · tanh(before · s), or before · s
  bool changes = false;
  const int64_t* state = nullptr;  // of dropout
  uint64_t threshold = 0;
  float kept = 1;  // what dropout multiplies the rest with
  bool drops = false;

  Scoring() = default;
  explicit Scoring(const Problem& p)
      : before(static_cast<float>(p.softmax_scale * (p.softcap > 0 ? 1 / p.softcap : kLog2e))),
        cap(static_cast<float>(p.softcap * kLog2e)),
        changes(p.softcap > 0 || p.bias || p.mask || p.alibi || !(p.softmax_scale > 0)),
        state(p.dropout.state),
        threshold(dropout_threshold(p.dropout.p)),
        kept(p.dropout.p < 1 ? static_cast<float>(1 / (1 - p.dropout.p)) : 0.0f),
        drops(p.dropout.p > 0) {
    if (!changes) scale = before;
  }
};

// tanh, to some last places: by its series near 0, where 1 - 2 / (1 + e^2x) would cancel.
WEFT_DEVICE float tanh_exact(float x) {
  const float x2 = x * x;
  float series = -0.00886323553f;
  series = fma(series, x2, 0.0218694885f);
  series = fma(series, x2, -0.0539682540f);
  series = fma(series, x2, 0.133333333f);
  series = fma(series, x2, -0.333333333f);
  const float near = fma(x * x2, series, x);
  const float far = 1 - 2 * rcp_approx(exp2_approx(x * static_cast<float>(2 * kLog2e)) + 1);
  return x2 < 0.09f ? near : far;
}

// log2 of what is at least 2^-126, to the last place or two.
WEFT_DEVICE float log2_exact(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (bits >= 0x7F800000) return x;  // +inf, NaN
  // x = 2^e · m, m from √½ to √2
  const int32_t e = static_cast<int32_t>(bits - 0x3F3504F3) >> 23;
  bits -= static_cast<uint32_t>(e) << 23;
  float m;
  __builtin_memcpy(&m, &bits, sizeof m);
  const float t = (m - 1) / (m + 1), t2 = t * t;
  float series = fma(t2, 0.32059890f, 0.41219858f);
  series = fma(series, t2, 0.57707801f);
  series = fma(series, t2, 0.96179669f);
  series = fma(series, t2, 2.8853901f);
  return fma(t, series, static_cast<float>(e));
}

// A tensor of scores at one row: where key 0 is, in elements.
WEFT_DEVICE int64_t row_index(const Scores& t, int64_t b, const Row& row) {
  return b * t.batch + row.h * t.head + row.i * t.row;
}

// All of a thread's scores, rows r of kRows by elements j of kColumns, of the block from key `first`
// on: products become what softmax sees, in units of log 2. What a row does not see is not looked up.
template <int kRows, int kColumns, class S>
WEFT_DEVICE void change(const Problem& p, const Scoring& scoring, const Sequence& e, int64_t b,
                        const Row (&rows)[kRows], int32_t first, const S& s) {
  const auto mine = [&](int j) {
    return static_cast<int32_t>(column_of(lane(), static_cast<uint32_t>(j)));
  };
  WEFT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Row& row = rows[r];
    WEFT_UNROLL
    for (int j = 0; j < kColumns; ++j) s(r, j) *= scoring.before;
    if (scoring.cap > 0) {
      WEFT_UNROLL
      for (int j = 0; j < kColumns; ++j) s(r, j) = tanh_exact(s(r, j)) * scoring.cap;
    }
    if (p.alibi) {
      const float slope = load(p.alibi.data + b * p.alibi.batch + row.h * p.alibi.head) *
                          static_cast<float>(kLog2e);
      const int32_t diagonal = row.i + key_offset(p, e) - first;
      WEFT_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        const int32_t away = mine(j) - diagonal;
        s(r, j) = fma(static_cast<float>(away < 0 ? away : -away), slope, s(r, j));
      }
    }
    if (!p.bias && !p.mask) continue;
    const Span seen = keys_of(p, e, row.i);
    const int32_t begin = seen.begin - first, end = seen.end - first;
    const auto each_seen = [&](const Scores& t, const auto& f) {
      const int64_t at = row_index(t, b, row) + first * t.column;
      WEFT_UNROLL
      for (int j = 0; j < kColumns; ++j)
        if (mine(j) >= begin && mine(j) < end) f(at + mine(j) * t.column, s(r, j));
    };
    const auto add = [&](auto type) {
      const auto* bias = static_cast<const decltype(type)*>(p.bias.data);
      each_seen(p.bias, [&](int64_t at, float& x) {
        x = fma(convert<float>(load(bias + at)), static_cast<float>(kLog2e), x);
      });
    };
    if (p.bias) {
      if (p.bias.dtype == DType::f32)
        add(float{});
      else if (p.bias.dtype == DType::bf16)
        add(bf16{});
      else
        add(f16{});
    }
    if (p.mask) {
      const auto* mask = static_cast<const uint8_t*>(p.mask.data);
      each_seen(p.mask, [&](int64_t at, float& x) {
        if (!load(mask + at)) x = -__builtin_inff();
      });
    }
  }
}

// -inf for what a row does not see, or is none of the keys `own`.
template <int kRows, int kColumns, class S>
WEFT_DEVICE void hide(const Problem& p, const Sequence& e, const Row (&rows)[kRows], Span own,
                      int32_t first, const S& s) {
  WEFT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Span seen = intersect(keys_of(p, e, rows[r].i), own);
    const int32_t begin = seen.begin - first, end = seen.end - first;
    WEFT_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const auto t = static_cast<int32_t>(column_of(lane(), j));
      if (t < begin || t >= end) s(r, j) = -__builtin_inff();
    }
  }
}

// The same for rows of which `seen` says what they see.
template <int kRows, int kColumns, class S>
WEFT_DEVICE void hide(const Span (&seen)[kRows], int32_t first, const S& s) {
  first += static_cast<int32_t>(column_of(lane(), 0));
  WEFT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int32_t begin = seen[r].begin - first, end = seen[r].end - first;
    WEFT_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const auto t = static_cast<int32_t>(column_of(0, static_cast<uint32_t>(j)));
      if (t < begin || t >= end) s(r, j) = -__builtin_inff();
    }
  }
}

// Dropout of weights: element ((b · H + h) · S + i) · T + t of the mask. A bit for each element of the
// thread's row: is it kept? Where rows begin with a block of random words, two lanes share it: each
// draws every other one, and they exchange the bits. Else two neighbours, of which the first is even,
// come of one block, or of two where the row begins at an odd element. `first` is a multiple of 8.
template <int kColumns>
WEFT_DEVICE uint32_t kept_bits(const Problem& p, const Scoring& scoring, int64_t b, const Row& row,
                               int32_t first) {
  static_assert(kColumns % 4 == 0 && kColumns <= 32);
  const uint64_t begin =
      static_cast<uint64_t>(((b * p.H + row.h) * p.S + row.i) * p.T + first + lane() % 4 * 2);
  uint32_t bits = 0;
  if (p.T % 4 == 0) {
    const uint32_t odd = lane() % 2;
    WEFT_NO_UNROLL
    for (uint32_t pair = 0; pair < kColumns / 2; pair += 2) {  // the key anew: no registers for it
      const Vec<uint32_t, 4> words =
          philox(philox_key(scoring.state), (begin + 8 * (pair + odd)) / 4);
      WEFT_UNROLL
      for (uint32_t k = 0; k < 4; ++k)
        bits |= (words[k] >= scoring.threshold ? 1u : 0u) << (2 * pair + k);
    }
    const uint32_t others = shuffle_xor(bits, 1), even_pairs = odd ? others : bits,
                   odd_pairs = odd ? bits : others;
    const auto mine = [&](uint32_t pairs) { return pairs >> 2 * odd & 0x33333333; };
    return mine(even_pairs) | mine(odd_pairs) << 2;
  }
  WEFT_NO_UNROLL
  for (uint32_t pair = 0; pair < kColumns / 2; ++pair) {
    const uint64_t at = begin + 8 * pair;
    Vec<uint32_t, 4> words = philox(philox_key(scoring.state), at / 4);
    const uint32_t in = at % 4;
    const uint32_t low = in < 2 ? (in == 0 ? words[0] : words[1]) : in == 2 ? words[2] : words[3];
    uint32_t high = in == 0 ? words[1] : in == 1 ? words[2] : words[3];
    if (in == 3) high = philox(philox_key(scoring.state), at / 4 + 1)[0];
    bits |= (low >= scoring.threshold ? 1u : 0u) << (2 * pair);
    bits |= (high >= scoring.threshold ? 2u : 0u) << (2 * pair);
  }
  return bits;
}

template <int kRows, int kColumns, class S>
WEFT_DEVICE void drop(const Problem& p, const Scoring& scoring, int64_t b, const Row (&rows)[kRows],
                      int32_t first, const S& s) {
  WEFT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const uint32_t bits = kept_bits<kColumns>(p, scoring, b, rows[r], first);
    WEFT_UNROLL
    for (int j = 0; j < kColumns; ++j) s(r, j) *= (bits >> j & 1) ? scoring.kept : 0.0f;
  }
}

// ---- online softmax, of a thread's rows

template <int kRows>
struct Softmax {
  float max[kRows], sum[kRows];  // max: times scale; sum: of this lane's elements, until finish()

  WEFT_DEVICE Softmax() {
    WEFT_UNROLL
    for (int r = 0; r < kRows; ++r) max[r] = -__builtin_inff(), sum[r] = 0;
  }

  // s = 2^(s · scale - max), summed up; alpha: what o so far is to be multiplied with.
  template <int kColumns, class S>
  WEFT_DEVICE void update(float scale, const S& s, float (&alpha)[kRows]) {
    WEFT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float most = s(r, 0);
      WEFT_UNROLL
      for (int j = 1; j < kColumns; ++j) most = max_nan(most, s(r, j));
      most = warp_reduce<4>(most, [](float a, float b) { return max_nan(a, b); });
      most = max_nan(max[r], most * scale);
      const float base = most == -__builtin_inff() ? 0.0f : most;
      alpha[r] = exp2_approx(max[r] - base);
      max[r] = most;
      float total = sum[r] * alpha[r];
      WEFT_UNROLL
      for (int j = 0; j < kColumns; ++j) {
        s(r, j) = exp2_approx(fma(s(r, j), scale, -base));
        total += s(r, j);
      }
      sum[r] = total;
    }
  }

  // Of a row that is complete: its lse, with the sink if there is one, and what o is to be multiplied
  // with.
  struct Result {
    float lse, factor;
  };
  WEFT_DEVICE Result finish(int r, const float* sink) const {
    const float total = warp_sum<4>(sum[r]);
    float most = max[r], whole = total, weight = 1;
    if (sink) {
      const float logit = load(sink) * static_cast<float>(kLog2e), with = max_nan(most, logit);
      const float base = with == -__builtin_inff() ? 0.0f : with;
      weight = exp2_approx(most - base);
      whole = fma(total, weight, exp2_approx(logit - base));
      most = with;
    }
    if (whole == 0) return {-__builtin_inff(), 0};
    return {(most + log2_exact(whole)) * static_cast<float>(kLn2), weight / whole};
  }
};

}  // namespace weft::attention::cuda
