// What a CPU level implements of the attention family's small ops. attention.cpp splits and picks
// the level.
#pragma once

#include <cstdint>

#include "attention/params.h"

namespace weft::attention::cpu {

// Rows [begin, end) of all: new rows of a cache, rows of x, rows of out (batch · S + row; of packed
// tensors the row), each with all its heads.
struct CacheKernels {
  void (*append)(const Append&, int64_t begin, int64_t end);
  void (*rotary)(const Rotary&, int64_t begin, int64_t end);
  void (*merge)(const Merge&, int64_t begin, int64_t end);
};

}  // namespace weft::attention::cpu
