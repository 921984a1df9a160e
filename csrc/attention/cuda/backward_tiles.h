// What the backward of attention adds to tiles.h and scores.h: tiles whose width is known at run time, and
// patches of scores.
#pragma once

#include "attention/cuda/backward_plan.h"
#include "attention/cuda/scores.h"
#include "attention/cuda/tiles.h"

namespace weft::attention::cuda {

template <class T>
constexpr DType kDType = std::is_same_v<T, bf16>  ? DType::bf16
                         : std::is_same_v<T, f16> ? DType::f16
                                                  : DType::f32;

// ---- tiles

// Rows of kColumns, 0: known at run time, in shared memory. They lie one unit of 16 bytes further apart
// than a multiple of two: eight of them, at one column, are all over the banks.
template <class T, uint32_t kColumns>
struct Tile {
  Shared<T> data;
  uint32_t columns;

  WEFT_INLINE static Tile take(SharedLayout& layout, uint32_t rows, uint32_t columns) {
    return {layout.take<T>(rows * (columns + kUnit<T>)), columns};
  }
  WEFT_DEVICE uint32_t at(uint32_t row, uint32_t column) const {
    return row * ((kColumns ? kColumns : columns) + kUnit<T>)+column;
  }
};

// The fragments that ldmatrix makes of a tile: of floats, before they become operands.
template <class Op>
using RawA = FragmentA<std::conditional_t<sizeof(typename Op::X) == 4, tf32, typename Op::X>>;
template <class Op>
using RawB = FragmentB<std::conditional_t<sizeof(typename Op::X) == 4, tf32, typename Op::X>>;

template <class Op>
WEFT_DEVICE typename Op::B operand_b(uint32_t first, uint32_t second) {
  return typename Op::B{Vec<uint32_t, 2>{{first, second}}};
}

// A: rows [row, row + 16) × columns [k, k + kStep) of a tile.
template <class Op, uint32_t kColumns>
WEFT_DEVICE typename Op::A load_a(const Tile<typename Op::X, kColumns>& tile, uint32_t row,
                                  uint32_t k) {
  const Place at = RawA<Op>::named(lane());
  return typename Op::A{ldmatrix<4>(tile.data, tile.at(row + at.row, k + at.column))};
}

// B, two neighbours in n: the tile's rows are n.
template <class Op, uint32_t kColumns>
WEFT_DEVICE void load_b(const Tile<typename Op::X, kColumns>& tile, uint32_t n, uint32_t k,
                        typename Op::B (&pair)[2]) {
  const Place at = RawB<Op>::named(lane());
  const Vec<uint32_t, 4> w = ldmatrix<4>(tile.data, tile.at(n + at.column, k + at.row));
  pair[0] = operand_b<Op>(w[0], w[1]);
  pair[1] = operand_b<Op>(w[2], w[3]);
}

// The same where the tile's rows are k, in the order of Op::a.
template <class Op, uint32_t kColumns>
WEFT_DEVICE void load_b_rows(const Tile<typename Op::X, kColumns>& tile, uint32_t k, uint32_t n,
                             typename Op::B (&pair)[2]) {
  if constexpr (sizeof(typename Op::X) == 4) {
    WEFT_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
      uint32_t words[2];
      WEFT_UNROLL
      for (uint32_t w = 0; w < 2; ++w) {
        const float x = tile.data[tile.at(k + lane() % 4 * 2 + w, n + 8 * i + lane() / 4)];
        __builtin_memcpy(&words[w], &x, sizeof x);
      }
      pair[i] = operand_b<Op>(words[0], words[1]);
    }
  } else {
    const Place at = Op::B::named_transposed(lane());
    const Vec<uint32_t, 4> w =
        ldmatrix_transposed<4>(tile.data, tile.at(k + at.row, n + at.column));
    pair[0] = operand_b<Op>(w[0], w[1]);
    pair[1] = operand_b<Op>(w[2], w[3]);
  }
}

// c[0], c[1] += a · the pair. Of split floats, the terms of a step meet before they meet c.
template <class Op>
WEFT_DEVICE void multiply_pair(FragmentC<float>* c, const typename Op::A& a,
                               const typename Op::B (&b)[2]) {
  WEFT_UNROLL
  for (int n = 0; n < 2; ++n) {
    if constexpr (Op::kSplits) {
      FragmentC<float> sum = FragmentC<float>::filled(0);
      Op::multiply(sum, a, b[n]);
      WEFT_UNROLL
      for (int i = 0; i < 4; ++i) c[n][i] += sum[i];
    } else {
      Op::multiply(c[n], a, b[n]);
    }
  }
}

// `rows` rows of a head on their way to a tile, zeros behind the first `count` rows and D elements.
// Eight threads take a row.
template <class T, uint32_t kColumns>
WEFT_DEVICE void load_rows(const Tile<T, kColumns>& to, uint32_t first, uint32_t rows,
                           const T* from, int64_t stride, int32_t count, int64_t D, bool vector) {
  constexpr uint32_t kThreads = 8;
  for (uint32_t row = thread() / kThreads; row < rows; row += threads() / kThreads) {
    const bool here = static_cast<int32_t>(row) < count;
    const T* x = from + (here ? row * stride : 0);
    for (uint32_t c = thread() % kThreads * kUnit<T>; c < (kColumns ? kColumns : to.columns);
         c += kThreads * kUnit<T>) {
      const int valid =
          here ? max(0, min<int>(static_cast<int>(D) - static_cast<int>(c), kUnit<T>)) : 0;
      if (vector) {
        copy_async<kUnit<T>>(to.data, to.at(first + row, c), valid ? x + c : from,
                             static_cast<uint32_t>(valid));
        continue;
      }
      Vec<T, kUnit<T>> unit = {};
      WEFT_UNROLL
      for (int i = 0; i < kUnit<T>; ++i)
        if (i < valid) unit[i] = load(x + c + i);
      to.data.template store<kUnit<T>>(to.at(first + row, c), unit);
    }
  }
}

// ---- who sees whom

// A window on one sequence.
struct Sight {
  int32_t S, T, offset;
  int32_t least, most;  // t - i of what query i sees

  Sight() = default;
  WEFT_DEVICE Sight(const Problem& p, const Sequence& e)
      : S(e.S), T(e.T), offset(key_offset(p, e)) {
    least = p.window_left < 0 ? -2 * kLongest : offset - bound(p.window_left);
    most = p.window_right < 0 ? 2 * kLongest : offset + bound(p.window_right);
  }
  // Queries that see some of the keys [t, end), keys that some of the queries [i, end) see.
  WEFT_DEVICE Span queries(int32_t t, int32_t end) const {
    return {max(t - most, 0), min(end - least, S)};
  }
  WEFT_DEVICE Span keys(int32_t i, int32_t end) const {
    return {max(i + least, 0), min(end + most, T)};
  }

 private:
  WEFT_DEVICE static int32_t bound(int64_t window) {
    return static_cast<int32_t>(min<int64_t>(window, kLongest));
  }
};

// ---- scores

WEFT_DEVICE void store_float(void* to, DType dtype, float x) {
  if (dtype == DType::f32) return store(static_cast<float*>(to), x);
  if (dtype == DType::bf16) return store(static_cast<bf16*>(to), to_bf16(x));
  store(static_cast<f16*>(to), to_f16(x));
}

// What the options make of a score x = q · k · softmax_scale that is seen; `slope`: the derivative of
// the cap, where there is one.
WEFT_DEVICE float score(const Problem& p, const Sight& sight, int64_t b, const Row& row, int32_t t,
                        float x, float& slope) {
  if (p.softcap > 0) {
    const auto cap = static_cast<float>(p.softcap);
    const float y = tanh_exact(x / cap);
    slope = fma(-y, y, 1.0f);
    x = y * cap;
  }
  if (p.bias) x += load_float(p.bias.at(b, row.h, row.i, t), p.bias.dtype);
  if (p.alibi) {
    const auto away = static_cast<float>(t - (row.i + sight.offset));
    const float weight = load(p.alibi.data + b * p.alibi.batch + row.h * p.alibi.head);
    x = fma(away < 0 ? away : -away, weight, x);
  }
  if (p.mask && !load(reinterpret_cast<const uint8_t*>(p.mask.at(b, row.h, row.i, t))))
    x = -__builtin_inff();
  return x;
}

// What dropout multiplies the weight of that score with.
WEFT_DEVICE float kept(const Problem& p, const Scoring& scoring, int64_t b, const Row& row,
                       int32_t t) {
  const auto at = static_cast<uint64_t>(((b * p.H + row.h) * p.S + row.i) * p.T + t);
  const Vec<uint32_t, 4> words = philox(philox_key(scoring.state), at / 4);
  const uint32_t in = at % 4, word = in < 2    ? (in == 0 ? words[0] : words[1])
                                     : in == 2 ? words[2]
                                               : words[3];
  return word >= scoring.threshold ? scoring.kept : 0.0f;
}

// ---- patches: queries × keys, a part of the scores of one head

class Patch {
 public:
  WEFT_DEVICE Patch(const Sight& sight, int32_t first_query, int32_t queries, int32_t first_key,
                    int32_t keys)
      : query(first_query),
        key(first_key),
        queries_(sight.S - query),
        keys_(sight.T - key),
        least_(sight.least - (key - query)),
        most_(sight.most - (key - query)) {
    hidden_ = keys - 1 < least_ || 1 - queries > most_ || queries_ <= 0 || keys_ <= 0;
    ragged_ = 1 - queries < least_ || keys - 1 > most_ || queries > queries_ || keys > keys_;
  }

  const int32_t query, key;  // the first

  WEFT_DEVICE bool hidden() const { return hidden_; }  // no query sees a key
  WEFT_DEVICE bool ragged() const { return ragged_; }  // some of them do not
  WEFT_DEVICE bool holds(int32_t i, int32_t t) const { return i < queries_ && t < keys_; }
  // Whether query i sees key t, counted from the first ones.
  WEFT_DEVICE bool sees(int32_t i, int32_t t) const {
    return holds(i, t) && t - i >= least_ && t - i <= most_;
  }

 private:
  int32_t queries_, keys_;  // that there are
  int32_t least_, most_;    // t - i of those that see each other
  bool hidden_, ragged_;
};

}  // namespace weft::attention::cuda
