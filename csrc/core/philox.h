// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011).
//
// Dropout draws from it without state: element e of a tensor (row-major index) takes word e % 4 of
// the block with
//   key = seed,  counter = (i, offset),  i = e / 4 + stream · 2^40
// so that every backend, split and order of threads draws the same mask, and backward draws it
// again from (seed, offset). An element is kept where its word is at least p · 2^32.
#pragma once

#include <cstdint>

#include "core/inline.h"

namespace weft {

struct PhiloxKey {
  uint64_t seed;
  uint64_t offset;
};

// The state lies where the kernels' memory is, and is read by them: a graph of a GPU's work that is
// launched again draws from what it is then.
struct Dropout {
  double p = 0;
  const int64_t* state = nullptr;  // seed, offset; none where p is 0

  WEFT_INLINE PhiloxKey key() const {
    if (!state) return {0, 0};
    return {static_cast<uint64_t>(state[0]), static_cast<uint64_t>(state[1])};
  }
};

// Blocks between the streams of one (seed, offset).
constexpr uint64_t kPhiloxStream = uint64_t{1} << 40;

constexpr uint32_t kPhiloxM0 = 0xD2511F53, kPhiloxM1 = 0xCD9E8D57;  // multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9,
                   kPhiloxW1 = 0xBB67AE85;  // key increments (Weyl sequence)
constexpr int kPhiloxRounds = 10;

// One round on four words c0…c3 with round keys k0, k1.
WEFT_INLINE void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0,
                              uint32_t k1) {
  const uint64_t p0 = uint64_t{kPhiloxM0} * c0, p1 = uint64_t{kPhiloxM1} * c2;
  const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
  const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
  c1 = static_cast<uint32_t>(p1);
  c3 = static_cast<uint32_t>(p0);
  c0 = n0;
  c2 = n2;
}

// Words below the threshold are dropped. p >= 1 drops all: no 32-bit word reaches 2^32.
WEFT_INLINE uint64_t dropout_threshold(double p) {
  const double exact = p * 4294967296.0;
  const uint64_t below = static_cast<uint64_t>(exact);
  return below + (static_cast<double>(below) < exact ? 1 : 0);
}

}  // namespace weft
