// Collectives of a group of W ranks as plain structs: the contract of all backends. In elements of
// x's dtype, with ⊕ a sum, an average or a maximum in fp32 (fp64 for fp64), in the order of the
// ranks, rounded once:
//
//   all_reduce       y[i] = ⊕ x_r[i]                   n elements in, n out
//   all_reduce_int8  y[i] = ⊕ s_r[i / group] · q_r[i]  x_r quantised by groups, s = max |x| / 127
//   reduce_scatter   y[i] = ⊕ x_r[rank · n + i]        W·n in, n out
//   all_gather       y[r · n + i] = x_r[i]             n in, W·n out; any dtype
//
// and of matrices of n / columns rows, which are computed while they are sent, or while they come:
//
//   linear_all_reduce      y = ⊕ p_r + bias, p_r = x_r · W_rᵀ rounded to the dtype
//   linear_reduce_scatter  y = (⊕ p_r + bias)[rank · n …]     n out of W·n elements of p_r
//   all_gather_linear      y = all_gather(x); meanwhile x_r · W_rᵀ, of the own rows
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace weft::comm {

enum class Kind : uint8_t {
  all_reduce,
  all_reduce_int8,
  reduce_scatter,
  all_gather,
  linear_all_reduce,
  linear_reduce_scatter,
  all_gather_linear,
};

WEFT_INLINE constexpr const char* name_of(Kind kind) {
  constexpr const char* names[] = {"all_reduce",       "all_reduce_int8",   "reduce_scatter",
                                   "all_gather",       "linear_all_reduce", "linear_reduce_scatter",
                                   "all_gather_linear"};
  return names[static_cast<int>(kind)];
}

// Of the last three.
WEFT_INLINE constexpr bool is_matrix(Kind kind) { return kind >= Kind::linear_all_reduce; }
constexpr int64_t kMostSide = (int64_t{1} << 24) - 1;  // rows or columns of a matrix

enum class Reduction : uint8_t { sum, avg, max };

WEFT_INLINE constexpr const char* name_of(Reduction reduction) {
  constexpr const char* names[] = {"sum", "avg", "max"};
  return names[static_cast<int>(reduction)];
}

struct Collective {
  Kind kind = Kind::all_reduce;
  Reduction reduction = Reduction::sum;
  DType dtype = DType::f32;
  int64_t n = 0;      // the smaller of elements in and elements out
  int64_t group = 0;  // of all_reduce_int8: elements to a scale, a multiple of 64
  const void* x = nullptr;
  void* y = nullptr;           // may be x in all_reduce and all_reduce_int8
  int64_t columns = 0;         // of a matrix
  const void* bias = nullptr;  // [columns], optional
  bool int8 = false;           // of a matrix: its products are INT8's

  WEFT_INLINE int64_t rows() const { return columns ? n / columns : 0; }

  // What all ranks must call alike, in a word: kind 4 bits, reduction 4, dtype 4, log2(group) 4,
  // n 48, or of a matrix int8 4, rows 24 and columns 24.
  WEFT_INLINE uint64_t signature() const {
    uint64_t shift = int8 ? 1 : 0;
    for (int64_t g = group; g > 1; g /= 2) ++shift;
    const int64_t size = is_matrix(kind) ? rows() << 24 | columns : n;
    return static_cast<uint64_t>(kind) << 60 | static_cast<uint64_t>(reduction) << 56 |
           static_cast<uint64_t>(dtype) << 52 | shift << 48 |
           (static_cast<uint64_t>(size) & ((uint64_t{1} << 48) - 1));
  }
  WEFT_INLINE static Collective of(uint64_t signature) {
    Collective c;
    c.kind = static_cast<Kind>(signature >> 60 & 15);
    c.reduction = static_cast<Reduction>(signature >> 56 & 15);
    c.dtype = static_cast<DType>(signature >> 52 & 15);
    c.group = c.kind == Kind::all_reduce_int8 ? int64_t{1} << (signature >> 48 & 15) : 0;
    c.n = static_cast<int64_t>(signature & ((uint64_t{1} << 48) - 1));
    if (is_matrix(c.kind)) {
      c.int8 = signature >> 48 & 1;
      c.columns = c.n & kMostSide;
      c.n = (c.n >> 24) * c.columns;
    }
    return c;
  }
};

// Rows [row, row + rows) and columns [column, column + columns) of a matrix.
struct Tile {
  int64_t row = 0, rows = 0, column = 0, columns = 0;
};

// A product of floats: y[m, n] = Σ_k x[m, k] · W[n, k] + bias[n], sums in fp32, rounded once.
struct Linear {
  DType dtype = DType::f32;
  int64_t M = 0, N = 0, K = 0;
  const void *x = nullptr, *weight = nullptr;
  const void* bias = nullptr;  // [N], optional
  void* y = nullptr;
  int64_t x_row = 0, weight_row = 0, weight_column = 0, y_row = 0;  // elements to the next
  void* workspace = nullptr;
};

// Which algorithm serves a message of up to `bytes`; the last line of a table serves all above.
//   one_shot  everybody reads everything: a round for each piece
//   two_shot  everybody reduces a share and reads the others' results: two rounds for each piece
struct Choice {
  int64_t bytes;
  bool two_shot;
  int64_t piece;  // bytes of a message that a rank puts into shared memory at once
};

}  // namespace weft::comm
