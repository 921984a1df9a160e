// Dropout on one ISA level: which elements of a stretch are kept (core/philox.h), several blocks side
// by side.
#pragma once

#include <cstdint>

#include "core/philox.h"

namespace weft::cpu::WEFT_CPU_LEVEL {

// keep[c] = 1 / (1 - p) where element first + c is kept, else 0; mask[c] says so in a byte. Either
// may be absent.
template <class A>
void draw_dropout(const Dropout& dropout, int64_t first, int64_t count, int stream, A* keep,
                  bool* mask) {
  constexpr int kBlocks = 16;  // Philox blocks side by side, for the compiler to vectorise over
  const uint64_t threshold = dropout_threshold(dropout.p);
  const A scale = dropout.p < 1 ? static_cast<A>(1 / (1 - dropout.p)) : A{0};
  const PhiloxKey key = dropout.key();
  const int64_t end = first + count;
  for (int64_t block = first / 4; block * 4 < end; block += kBlocks) {
    uint32_t c[4][kBlocks];
    for (int l = 0; l < kBlocks; ++l) {
      const uint64_t i =
          static_cast<uint64_t>(block + l) + static_cast<uint64_t>(stream) * kPhiloxStream;
      c[0][l] = static_cast<uint32_t>(i);
      c[1][l] = static_cast<uint32_t>(i >> 32);
      c[2][l] = static_cast<uint32_t>(key.offset);
      c[3][l] = static_cast<uint32_t>(key.offset >> 32);
    }
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1)
      for (int l = 0; l < kBlocks; ++l) philox_round(c[0][l], c[1][l], c[2][l], c[3][l], k0, k1);

    for (int l = 0; l < kBlocks; ++l)
      for (int word = 0; word < 4; ++word) {
        const int64_t at = (block + l) * 4 + word - first;
        if (at < 0 || at >= count) continue;
        const bool kept = c[word][l] >= threshold;
        if (keep) keep[at] = kept ? scale : A{0};
        if (mask) mask[at] = kept;
      }
  }
}

}  // namespace weft::cpu::WEFT_CPU_LEVEL
