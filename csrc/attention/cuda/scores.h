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

// A row of a block: query i of head h.
struct Row {
  int32_t i, h;
};

// The options as kernels want them. Where `changes`, change() makes of a product what softmax sees,
// in units of log 2; else softmax multiplies it with `scale`.
struct Scoring {
  float scale = 1;
  float before = 1, cap = 0;  // s = cap · tanh(before · s), or before · s
  bool changes = false;
  PhiloxKey key = {0, 0};
  uint64_t threshold = 0;
  float kept = 1;  // what dropout multiplies the rest with
  bool drops = false;

  Scoring() = default;
  explicit Scoring(const Problem& p)
      : before(static_cast<float>(p.softmax_scale * (p.softcap > 0 ? 1 / p.softcap : kLog2e))),
        cap(static_cast<float>(p.softcap * kLog2e)),
        changes(p.softcap > 0 || p.bias || p.mask || p.alibi || !(p.softmax_scale > 0)),
        key(p.dropout.key),
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

// An element of a floating tensor of any dtype.
WEFT_DEVICE float load_float(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::f32) return load(static_cast<const float*>(data) + i);
  if (dtype == DType::bf16) return to_float(load(static_cast<const bf16*>(data) + i));
  return to_float(load(static_cast<const f16*>(data) + i));
}

// One score of row, key t: what softmax sees, in units of log 2.
WEFT_DEVICE float changed(const Problem& p, const Scoring& scoring, const Sequence& e, int64_t b,
                          const Row& row, int32_t t, float s) {
  s *= scoring.before;
  if (scoring.cap > 0) s = tanh_exact(s) * scoring.cap;
  if (p.alibi) {
    const float slope = load(p.alibi.data + b * p.alibi.batch + row.h * p.alibi.head);
    const auto away = static_cast<float>(t - (row.i + key_offset(p, e)));
    s = fma(away < 0 ? away : -away, slope * static_cast<float>(kLog2e), s);
  }
  if (p.bias)
    s = fma(load_float(p.bias.data, p.bias.dtype,
                       b * p.bias.batch + row.h * p.bias.head + row.i * p.bias.row +
                           t * p.bias.column),
            static_cast<float>(kLog2e), s);
  if (p.mask && !load(static_cast<const uint8_t*>(p.mask.data) + b * p.mask.batch +
                      row.h * p.mask.head + row.i * p.mask.row + t * p.mask.column))
    s = -__builtin_inff();
  return s;
}

// change(): all of a thread's scores, rows r of kRows by elements j of kColumns, of the block from key
// `first` on, where the row sees them. What a row does not see is never looked up.
template <int kRows, int kColumns, class S>
WEFT_DEVICE void change(const Problem& p, const Scoring& scoring, const Sequence& e, int64_t b,
                        const Row (&rows)[kRows], int32_t first, const S& s) {
  WEFT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Span seen = keys_of(p, e, rows[r].i);
    WEFT_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const int32_t t = first + static_cast<int32_t>(column_of(lane(), j));
      if (t >= seen.begin && t < seen.end) s(r, j) = changed(p, scoring, e, b, rows[r], t, s(r, j));
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

// Dropout of weights: element ((b · H + h) · S + i) · T + t of the mask.
class Draw {
 public:
  WEFT_DEVICE Draw(const Problem& p, const Scoring& scoring, int64_t b, const Row& row)
      : scoring_(scoring),
        first_(static_cast<uint64_t>(((b * p.H + row.h) * p.S + row.i) * p.T)) {}

  // 0, or what a weight that is kept is multiplied with.
  WEFT_DEVICE float operator()(int32_t t) {
    const uint64_t e = first_ + static_cast<uint64_t>(t), index = e / 4;
    if (index != index_) words_ = philox(scoring_.key, index_ = index);
    const uint32_t w = e % 4;
    const uint32_t word = w < 2 ? (w == 0 ? words_[0] : words_[1])
                                : (w == 2 ? words_[2] : words_[3]);
    return word >= scoring_.threshold ? scoring_.kept : 0.0f;
  }

 private:
  const Scoring& scoring_;
  uint64_t first_, index_ = ~uint64_t{0};
  Vec<uint32_t, 4> words_ = {};
};

template <int kRows, int kColumns, class S>
WEFT_DEVICE void drop(const Problem& p, const Scoring& scoring, int64_t b, const Row (&rows)[kRows],
                      int32_t first, const S& s) {
  WEFT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    Draw draw(p, scoring, b, rows[r]);
    WEFT_UNROLL
    for (int j = 0; j < kColumns; ++j)
      s(r, j) *= draw(first + static_cast<int32_t>(column_of(lane(), j)));
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
