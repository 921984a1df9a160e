// The block of four random words that core/philox.h describes, drawn by one thread.
#pragma once

#include "core/philox.h"
#include "gpu/global.h"

namespace weft::gpu {

WEFT_DEVICE PhiloxKey philox_key(const int64_t* state) {
  if (!state) return {0, 0};
  return {static_cast<uint64_t>(load(state)), static_cast<uint64_t>(load(state + 1))};
}

// Elements 4 · index … 4 · index + 3 of a stream of (seed, offset); the stream is in the index's
// upper bits.
WEFT_INLINE Vec<uint32_t, 4> philox(PhiloxKey key, uint64_t index) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(key.offset), c3 = static_cast<uint32_t>(key.offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1)
    philox_round(c0, c1, c2, c3, k0, k1);
  return {{c0, c1, c2, c3}};
}

}  // namespace weft::gpu
