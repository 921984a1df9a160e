// The transpose of bytes: to[c, n] = from[n, c], [N, C].
//
// Plan. A block takes 64 × 64 through shared memory, E neighbours of a row in and E of a column out at
// a time: four where rows and columns are whole fours, else one. Rows in shared memory are 17 words
// apart, so that a column's lie in different banks.
// Cost: a byte read and one written; bound by memory, or L2, that has just been written.
#pragma once

#include "gpu/gpu.h"

namespace weft::int8::cuda {

using namespace ::weft::gpu;

struct Transposition {
  const int8_t* from = nullptr;
  int8_t* to = nullptr;
  int64_t N = 0, C = 0;
};

constexpr uint32_t kTurnedTile = 64, kTurnedPitch = kTurnedTile + 4, kTurnThreads = 256;

struct TransposeShared {
  SharedLayout layout;
  Shared<int8_t> tile = layout.take<int8_t>(kTurnedTile * kTurnedPitch);
};

template <int E>
WEFT_KERNEL_BOUNDS(kTurnThreads, 1)
void transpose_kernel(WEFT_GRID_CONSTANT const Transposition call) {
  const TransposeShared smem;
  constexpr uint32_t kUnits = kTurnedTile / E;  // of a row, or a column
  const auto across = static_cast<uint32_t>(ceil_div(call.C, kTurnedTile));
  const int64_t n0 = int64_t{block().x / across} * kTurnedTile,
                c0 = int64_t{block().x % across} * kTurnedTile;
  for (uint32_t i = thread(); i < kTurnedTile * kUnits; i += kTurnThreads) {
    const uint32_t n = i / kUnits, c = i % kUnits * E;
    if (n0 + n >= call.N || c0 + c >= call.C) continue;
    const Vec<int8_t, E> v = load<E>(call.from + (n0 + n) * call.C + c0 + c);
    for (uint32_t j = 0; j < E; ++j) smem.tile[n * kTurnedPitch + c + j] = v[j];
  }
  sync_block();
  for (uint32_t i = thread(); i < kTurnedTile * kUnits; i += kTurnThreads) {
    const uint32_t c = i / kUnits, n = i % kUnits * E;
    if (n0 + n >= call.N || c0 + c >= call.C) continue;
    Vec<int8_t, E> v = {};
    for (uint32_t j = 0; j < E; ++j) v[j] = smem.tile[(n + j) * kTurnedPitch + c];
    store(call.to + (c0 + c) * call.N + n0 + n, v);
  }
}

}  // namespace weft::int8::cuda
