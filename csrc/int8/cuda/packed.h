// A packed weight on CUDA, the same for all GPUs:
//
//   header           128 bytes
//   column sums      Σ_k w[n, k] as int32, of N rounded up to 64
//   rows             of as many n. 8 bits: w[n, k] by k, in whole units of 16 bytes, as tensor copies
//                    and ldmatrix want it. 4 bits: w + 8, in blocks of 128 k
//
// A block of 4 bits is what the four lanes of a quad load, 16 bytes each, for products of m16n8k16:
// word j of lane t holds k = 32 j + 8 t … + 7, a step of K two neighbouring halves of it, and in a word
// the pairs of neighbours lie 16 bits apart, so that one mask takes out both:
//
//   bits   28-31  24-27  20-23  16-19  12-15   8-11    4-7    0-3
//   k        7      5      3      1      6      4      2      0
//
// What pads N and K is 0. The length is 128 more than a multiple of 256, which no weight packed on a
// CPU has: so one is never taken for the other without a look into the GPU's memory.
#pragma once

#include <cstdint>

#include "core/inline.h"
#include "int8/packed.h"

namespace weft::int8::cuda {

constexpr uint32_t kPackedVersion = 0x101;
constexpr int64_t kPackedHeader = 128;

struct PackedLayout {
  int64_t rows, row_bytes, bytes;

  WEFT_INLINE constexpr PackedLayout(int64_t N, int64_t K, int bits)
      : rows((N + 63) / 64 * 64),
        row_bytes(bits == 8 ? (K + 15) / 16 * 16 : (K + 127) / 128 * 64),
        bytes(kPackedHeader + rows * (4 + row_bytes)) {}

  WEFT_INLINE const int32_t* sums(const void* packed) const {
    return reinterpret_cast<const int32_t*>(static_cast<const char*>(packed) + kPackedHeader);
  }
  WEFT_INLINE const int8_t* weight(const void* packed) const {
    return static_cast<const int8_t*>(packed) + kPackedHeader + rows * 4;
  }
};

// Where element k of a row of 4 bits lies: the bytes of the word with its eight, and in that the bit.
struct NibblePlace {
  int64_t word;
  uint32_t bit;
};
WEFT_INLINE constexpr NibblePlace nibble_place(int64_t k) {
  const int64_t lane = k % 32 / 8, j = k % 128 / 32, i = k % 8;
  return {k / 128 * 64 + lane * 16 + j * 4, static_cast<uint32_t>(i / 2 * 4 + i % 2 * 16)};
}

}  // namespace weft::int8::cuda
