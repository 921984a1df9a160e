// Collectives of a group of W ranks as plain structs: the contract of all backends. In elements of
// x's dtype, with ⊕ a sum, an average or a maximum in fp32 (fp64 for fp64), in the order of the
// ranks, rounded once:
//
//   all_reduce       y[i] = ⊕ x_r[i]                   n elements in, n out
//   all_reduce_int8  y[i] = ⊕ s_r[i / group] · q_r[i]  x_r quantised by groups, s = max |x| / 127
//   reduce_scatter   y[i] = ⊕ x_r[rank · n + i]        W·n in, n out
//   all_gather       y[r · n + i] = x_r[i]             n in, W·n out; any dtype
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace weft::comm {

enum class Kind : uint8_t { all_reduce, all_reduce_int8, reduce_scatter, all_gather };

WEFT_INLINE constexpr const char* name_of(Kind kind) {
  constexpr const char* names[] = {"all_reduce", "all_reduce_int8", "reduce_scatter", "all_gather"};
  return names[static_cast<int>(kind)];
}

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
  void* y = nullptr;  // may be x in all_reduce and all_reduce_int8

  // What all ranks must call alike, in a word: kind 4 bits, reduction 4, dtype 4, log2(group) 4,
  // n 48.
  WEFT_INLINE uint64_t signature() const {
    uint64_t shift = 0;
    for (int64_t g = group; g > 1; g /= 2) ++shift;
    return static_cast<uint64_t>(kind) << 60 | static_cast<uint64_t>(reduction) << 56 |
           static_cast<uint64_t>(dtype) << 52 | shift << 48 |
           (static_cast<uint64_t>(n) & ((uint64_t{1} << 48) - 1));
  }
  WEFT_INLINE static Collective of(uint64_t signature) {
    Collective c;
    c.kind = static_cast<Kind>(signature >> 60 & 3);
    c.reduction = static_cast<Reduction>(signature >> 56 & 15);
    c.dtype = static_cast<DType>(signature >> 52 & 15);
    c.group = c.kind == Kind::all_reduce_int8 ? int64_t{1} << (signature >> 48 & 15) : 0;
    c.n = static_cast<int64_t>(signature & ((uint64_t{1} << 48) - 1));
    return c;
  }
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
