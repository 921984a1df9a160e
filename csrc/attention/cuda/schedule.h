// The order in which the persistent blocks of a grid take tiles of work.
#pragma once

#include <cstdint>

#include "core/inline.h"

namespace weft::attention::cuda {

// The order of the work: kQueries queries of a head of a sequence are a tile. Sections of heads,
// whose keys and values fit into L2 together, one after the other; in a section one block of
// queries after the other, the last, which see most under a causal mask, first; of each, all heads.
// The blocks of a packed batch are those of all its sequences, so that a head is one of H.
//
// A grid of fewer blocks than tiles takes them in rounds, every other one backwards: a block that
// had the longest tile of one round has the shortest of the next. So no counter in memory is
// needed, and who computes what does not depend on time.
//
// The backward of sm_90a has blocks of keys as tiles, the first first, and takes them from a counter.
struct Schedule {
  uint32_t tiles = 0, heads = 0, blocks = 0;  // heads: B · H, or H; blocks of queries of each
  uint32_t section = 1;                       // heads
  bool last_first = false;

  struct Tile {
    uint32_t head, block;
  };
  WEFT_INLINE constexpr Tile tile(uint32_t i) const {
    const uint32_t first = i / (section * blocks) * section, rest = i - first * blocks;
    const uint32_t count = heads - first < section ? heads - first : section;
    const uint32_t row = rest / count;
    return {first + rest % count, last_first ? blocks - 1 - row : row};
  }
  // The tile that block `x` of a grid takes in a round; `tiles` and beyond: none.
  WEFT_INLINE constexpr uint32_t at(uint32_t round, uint32_t x, uint32_t grid) const {
    return round * grid + (round % 2 ? grid - 1 - x : x);
  }
};

}  // namespace weft::attention::cuda
