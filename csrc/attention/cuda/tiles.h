// Tiles of rows of q, k and v in shared memory, and products of a warp from them. For kernels that
// read with cp.async or element by element, and multiply with mma.
//
// A tile is [rows, kColumns], in units of 16 bytes: unit c of row r is stored as unit c ^ (r & 7), so
// that the eight rows that ldmatrix reads together lie in different banks.
#pragma once

#include "attention/cuda/sequences.h"

namespace weft::attention::cuda {

template <class X>
constexpr int kUnit = static_cast<int>(16 / sizeof(X));  // elements

template <class X, int kColumns>
WEFT_DEVICE uint32_t tile_index(uint32_t row, uint32_t column) {
  static_assert(kColumns % (8 * kUnit<X>) == 0);
  constexpr uint32_t unit = kUnit<X>;
  return row * kColumns + ((column / unit) ^ (row & 7)) * unit + column % unit;
}

// The units of a tile, divided among a block's threads: f(row, column of the first element).
template <class X, int kRows, int kColumns, int kThreads, bool kUnroll, class F>
WEFT_DEVICE void for_units(const F& f) {
  constexpr int kUnits = kColumns / kUnit<X>, kAll = kRows * kUnits,
                kPasses = (kAll + kThreads - 1) / kThreads;
  const auto one = [&](int pass) {
    const uint32_t unit = thread() + static_cast<uint32_t>(pass) * kThreads;
    if (kAll % kThreads == 0 || unit < kAll) f(unit / kUnits, unit % kUnits * kUnit<X>);
  };
  if constexpr (kUnroll) {
    WEFT_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) one(pass);
  } else {
    WEFT_NO_UNROLL
    for (int pass = 0; pass < kPasses; ++pass) one(pass);
  }
}

// A tile of kRows × kColumns, brought by all threads of a block unit by unit: source(row, column,
// pointer) gives the address of a unit and how many of its elements there are (the rest are 0, and
// not read); index(row, column) is its place in the tile. By cp.async where rows are vectors, else
// element by element, at once.
template <int kRows, int kColumns, int kThreads, bool kUnroll, class X, class Source, class Index>
WEFT_DEVICE void bring_tile(Shared<X> to, bool vector, const Source& source, const Index& index) {
  constexpr int E = kUnit<X>;
  if (vector) {
    for_units<X, kRows, kColumns, kThreads, kUnroll>([&](uint32_t r, uint32_t column) {
      const X* from;
      const auto valid = static_cast<uint32_t>(max(0, min(source(r, column, from), E)));
      copy_async<E>(to, index(r, column), from, valid);
    });
  } else {
    for_units<X, kRows, kColumns, kThreads, false>([&](uint32_t r, uint32_t column) {
      const X* from;
      const int valid = source(r, column, from);
      Vec<X, E> unit = {};
      WEFT_UNROLL
      for (int e = 0; e < E; ++e)
        if (e < valid) unit[e] = load(from + e);
      to.template store<E>(index(r, column), unit);
    });
  }
}

// ---- products. The type of elements in memory, of A and B in registers, and how many of K one step
// takes.
template <class T>
struct Operands {
  using X = T;
  using A = FragmentA<X>;
  using B = FragmentB<X>;
  static constexpr int kStep = 16;
  static constexpr bool kSplits = false;  // has small terms, for which sums of their own pay

  // The rows [row, row + 16) × columns [k, k + kStep) of a tile.
  template <int kColumns>
  WEFT_DEVICE static A a(Shared<X> tile, uint32_t row, uint32_t k) {
    const Place at = A::named(lane());
    return A{ldmatrix<4>(tile, tile_index<X, kColumns>(row + at.row, k + at.column))};
  }
  // Two neighbours in n: the tile's rows are n, [n, n + 16) × columns [k, k + kStep).
  template <int kColumns>
  WEFT_DEVICE static void b(Shared<X> tile, uint32_t n, uint32_t k, B (&pair)[2]) {
    const Place at = B::named(lane());
    const Vec<uint32_t, 4> w =
        ldmatrix<4>(tile, tile_index<X, kColumns>(n + at.column, k + at.row));
    pair[0] = {{{w[0], w[1]}}};
    pair[1] = {{{w[2], w[3]}}};
  }
  // The same where the tile's rows are k: rows [k, k + kStep) × columns [n, n + 16).
  template <int kColumns>
  WEFT_DEVICE static void b_rows(Shared<X> tile, uint32_t k, uint32_t n, B (&pair)[2]) {
    const Place at = B::named_transposed(lane());
    const Vec<uint32_t, 4> w =
        ldmatrix_transposed<4>(tile, tile_index<X, kColumns>(k + at.row, n + at.column));
    pair[0] = {{{w[0], w[1]}}};
    pair[1] = {{{w[2], w[3]}}};
  }
  // Columns [16k, 16k + 16) of a result in registers as A.
  template <int N>
  WEFT_DEVICE static A a(const FragmentC<float> (&c)[N], int step) {
    return fragment_a<X>(c[2 * step], c[2 * step + 1]);
  }
  WEFT_DEVICE static void multiply(FragmentC<float>& c, const A& a, const B& b) { mma(c, a, b); }
};

// float as two tf32, x = high + low to the last place but one; a · b without low · low. Where high is
// no number, high · low is left out: it would make inf · v a NaN.
struct SplitTf32 {
  tf32 high, low;
  bool finite;

  WEFT_DEVICE static SplitTf32 of(uint32_t bits) {
    float x, h;
    __builtin_memcpy(&x, &bits, sizeof x);
    SplitTf32 s = {to_tf32(x), {0}, true};
    s.finite = (s.high.bits & 0x7F800000) != 0x7F800000;
    __builtin_memcpy(&h, &s.high.bits, sizeof h);
    if (s.finite) s.low = to_tf32(x - h);
    return s;
  }
};

template <class Fragment, int kWords>
struct SplitFragment {
  Fragment high, low, finite;  // finite: high, 0 where it is none

  SplitFragment() = default;
  WEFT_DEVICE explicit SplitFragment(const Vec<uint32_t, kWords>& words) {
    WEFT_UNROLL
    for (int i = 0; i < kWords; ++i) {
      const SplitTf32 s = SplitTf32::of(words[i]);
      high.words[i] = s.high.bits;
      low.words[i] = s.low.bits;
      finite.words[i] = s.finite ? s.high.bits : 0;
    }
  }
};

// float rounded to tf32.
template <class Fragment, int kWords>
struct RoundedFragment {
  Fragment value;

  RoundedFragment() = default;
  WEFT_DEVICE explicit RoundedFragment(const Vec<uint32_t, kWords>& words) {
    WEFT_UNROLL
    for (int i = 0; i < kWords; ++i) {
      float x;
      __builtin_memcpy(&x, &words[i], sizeof x);
      value.words[i] = to_tf32(x).bits;
    }
  }
};

template <template <class, int> class Kind>
struct FloatOperands {
  using X = float;
  using A = Kind<FragmentA<tf32>, 4>;
  using B = Kind<FragmentB<tf32>, 2>;
  static constexpr int kStep = 8;

  template <int kColumns>
  WEFT_DEVICE static A a(Shared<float> tile, uint32_t row, uint32_t k) {
    const Place at = FragmentA<tf32>::named(lane());
    return A(ldmatrix<4>(tile, tile_index<float, kColumns>(row + at.row, k + at.column)));
  }
  template <int kColumns>
  WEFT_DEVICE static void b(Shared<float> tile, uint32_t n, uint32_t k, B (&pair)[2]) {
    const Place at = FragmentB<tf32>::named(lane());
    const Vec<uint32_t, 4> w =
        ldmatrix<4>(tile, tile_index<float, kColumns>(n + at.column, k + at.row));
    pair[0] = B(Vec<uint32_t, 2>{{w[0], w[1]}});
    pair[1] = B(Vec<uint32_t, 2>{{w[2], w[3]}});
  }
  // Row k of B is row 2k of the tile's eight, k + 4 is 2k + 1: as a() below has them.
  template <int kColumns>
  WEFT_DEVICE static void b_rows(Shared<float> tile, uint32_t k, uint32_t n, B (&pair)[2]) {
    WEFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      Vec<uint32_t, 2> words;
      WEFT_UNROLL
      for (int w = 0; w < 2; ++w) {
        const float x =
            tile[tile_index<float, kColumns>(k + lane() % 4 * 2 + w, n + 8 * i + lane() / 4)];
        __builtin_memcpy(&words[w], &x, sizeof x);
      }
      pair[i] = B(words);
    }
  }
  // Columns [8k, 8k + 8) of a result: a lane holds two neighbours, A wants columns that lie 4 apart.
  template <int N>
  WEFT_DEVICE static A a(const FragmentC<float> (&c)[N], int step) {
    Vec<uint32_t, 4> words;
    WEFT_UNROLL
    for (int i = 0; i < 4; ++i)
      __builtin_memcpy(&words[i], &c[step].data.data[i % 2 * 2 + i / 2], sizeof(float));
    return A(words);
  }
};

template <>
struct Operands<float> : FloatOperands<SplitFragment> {
  static constexpr bool kSplits = true;

  WEFT_DEVICE static void multiply(FragmentC<float>& c, const A& a, const B& b) {
    multiply(c, c, a, b);
  }
  // What is small beside the product in sums of its own, which are rounded less.
  WEFT_DEVICE static void multiply(FragmentC<float>& c, FragmentC<float>& small, const A& a,
                                   const B& b) {
    mma(small, a.low, b.finite);
    mma(small, a.finite, b.low);
    mma(c, a.high, b.high);
  }
};

template <>
struct Operands<tf32> : FloatOperands<RoundedFragment> {
  static constexpr bool kSplits = false;

  WEFT_DEVICE static void multiply(FragmentC<float>& c, const A& a, const B& b) {
    mma(c, a.value, b.value);
  }
};

// ---- results of a warp: 16 · kMTiles rows, kColumns columns

template <int kMTiles, int kColumns>
struct Fragments {
  static constexpr int kWidth = kColumns;
  FragmentC<float> c[kMTiles][kColumns == 0 ? 1 : kColumns / 8];

  template <class F>
  WEFT_DEVICE void each(const F& f) {  // f(element, row of the thread)
    WEFT_UNROLL
    for (int m = 0; m < kMTiles; ++m) {
      WEFT_UNROLL
      for (int n = 0; n < kColumns / 8; ++n) {
        WEFT_UNROLL
        for (int i = 0; i < 4; ++i) f(c[m][n][static_cast<uint32_t>(i)], 2 * m + i / 2);
      }
    }
  }
  WEFT_DEVICE void clear() {
    each([](float& x, int) { x = 0; });
  }
  WEFT_DEVICE void add(const Fragments& other) {
    WEFT_UNROLL
    for (int m = 0; m < kMTiles; ++m) {
      WEFT_UNROLL
      for (int n = 0; n < kColumns / 8; ++n) {
        WEFT_UNROLL
        for (uint32_t i = 0; i < 4; ++i) c[m][n][i] += other.c[m][n][i];
      }
    }
  }
  WEFT_DEVICE void scale(const float (&by)[2 * kMTiles]) {
    each([&](float& x, int r) { x *= by[r]; });
  }
};

// c += A · Bᵀ: rows [row, …) of tile a, each kD wide, by the rows of tile b; columns from D on are 0.
template <class Op, int kD, int kMTiles, int kN>
WEFT_DEVICE void multiply_rows(Fragments<kMTiles, kN>& result, Shared<typename Op::X> a,
                               uint32_t row, Shared<typename Op::X> b, int64_t D) {
  constexpr bool kSplit = Op::kSplits && kD <= 128;  // beyond, registers are short
  Fragments<kMTiles, kSplit ? kN : 0> small;
  small.clear();
  const auto multiply = [&](int m, int n, const auto& left, const auto& right) {
    if constexpr (kSplit)
      Op::multiply(result.c[m][n], small.c[m][n], left, right);
    else
      Op::multiply(result.c[m][n], left, right);
  };
  const auto step = [&](uint32_t d) {
    typename Op::A left[kMTiles];
    WEFT_UNROLL
    for (int m = 0; m < kMTiles; ++m)
      left[m] = Op::template a<kD>(a, row + static_cast<uint32_t>(16 * m), d);
    WEFT_UNROLL
    for (int n = 0; n < kN; n += 16) {
      typename Op::B right[2];
      Op::template b<kD>(b, static_cast<uint32_t>(n), d, right);
      WEFT_UNROLL
      for (int m = 0; m < kMTiles; ++m) {
        multiply(m, n / 8, left[m], right[0]);
        multiply(m, n / 8 + 1, left[m], right[1]);
      }
    }
  };
  if constexpr (sizeof(typename Op::X) == 2 && kD <= 128) {
    WEFT_UNROLL
    for (uint32_t d = 0; d < kD; d += Op::kStep) step(d);
  } else {  // long enough, and registers are short
    WEFT_NO_UNROLL
    for (uint32_t d = 0; d < D; d += Op::kStep) step(d);
  }
  if constexpr (kSplit) result.add(small);
}

// c += P · B: P in registers, by the rows of tile b, each kDv wide.
template <class Op, int kDv, int kMTiles, int kN>
WEFT_DEVICE void multiply_columns(Fragments<kMTiles, kDv>& result, const Fragments<kMTiles, kN>& p,
                                  Shared<typename Op::X> b) {
  WEFT_UNROLL
  for (int n = 0; n < kN; n += Op::kStep) {
    typename Op::A left[kMTiles];
    WEFT_UNROLL
    for (int m = 0; m < kMTiles; ++m) left[m] = Op::a(p.c[m], n / Op::kStep);
    WEFT_UNROLL
    for (int d = 0; d < kDv; d += 16) {
      typename Op::B right[2];
      Op::template b_rows<kDv>(b, static_cast<uint32_t>(n), static_cast<uint32_t>(d), right);
      WEFT_UNROLL
      for (int m = 0; m < kMTiles; ++m) {
        Op::multiply(result.c[m][d / 8], left[m], right[0]);
        Op::multiply(result.c[m][d / 8 + 1], left[m], right[1]);
      }
    }
  }
}

}  // namespace weft::attention::cuda
