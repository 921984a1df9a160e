// What a CPU level implements of the family: communicator.cpp says when.
#pragma once

#include <cstdint>

#include "comm/params.h"

namespace weft::comm::cpu {

// An int8 message: q[n], and a scale for each group of them.
struct Quantised {
  const int8_t* q;
  const float* scales;
};

struct Kernels {
  // y[i] = ⊕ sources[r][i] over the ranks r in order; to `also`, too, where that is given. y may be
  // one of the sources. stream: past the caches, where y allows.
  void (*reduce)(DType, Reduction, const void* const* sources, int world, void* y, void* also,
                 int64_t n, bool stream);
  // By groups of a multiple of 64 elements. A group with NaN or infinity has the scale NaN.
  void (*quantise)(DType, const void* x, int64_t n, int64_t group, int8_t* q, float* scales);
  void (*reduce_int8)(DType, Reduction, const Quantised* sources, int world, void* y, int64_t n,
                      int64_t group);
};

const Kernels& kernels();  // of the current level

}  // namespace weft::comm::cpu
