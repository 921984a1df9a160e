// The transpose of up to kWaitingRows rows of bytes: to[c * pitch + r] = from[r * row + c].
//
// A tile of 16 × 16 is turned in registers: to put the upper eight rows between the lower eight rotates
// the bits of every byte's place by one, and four times of eight exchange row and column. Each tile is
// 64 shuffles of 16 bytes, a quarter of one a byte. Rows are read in whole pieces of 16 bytes.
#pragma once

#include <cstring>

#include "int8/cpu/kernels.h"

namespace weft::int8::cpu::WEFT_CPU_LEVEL {

constexpr int64_t kPiece = 16;

using Piece = int8_t __attribute__((vector_size(kPiece)));

WEFT_INLINE void turn(Piece* v) {
  for (int round = 0; round < 4; ++round) {
    Piece zipped[kPiece];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      zipped[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5,
                                              21, 6, 22, 7, 23);
      zipped[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12,
                                                  28, 13, 29, 14, 30, 15, 31);
    }
    std::memcpy(v, zipped, sizeof zipped);
  }
}

// A line of the result is written once: lines of neighbouring channels may share a set of L1.
inline void transpose(const int8_t* from, int64_t row, int64_t rows, int64_t columns, int8_t* to,
                      int64_t pitch) {
  alignas(64) int8_t lines[kPiece][kWaitingRows];
  for (int64_t c = 0; c < columns; c += kPiece) {
    for (int64_t r = 0; r < rows; r += kPiece) {
      Piece v[kPiece];
      for (int64_t i = 0; i < kPiece; ++i) std::memcpy(&v[i], from + (r + i) * row + c, kPiece);
      turn(v);
      for (int64_t i = 0; i < kPiece; ++i) std::memcpy(lines[i] + r, &v[i], kPiece);
    }
    for (int64_t i = 0; i < kPiece && c + i < columns; ++i) {
      if (rows == kWaitingRows)
        std::memcpy(to + (c + i) * pitch, lines[i], kWaitingRows);
      else
        std::memcpy(to + (c + i) * pitch, lines[i], static_cast<size_t>(rows));
    }
  }
}

}  // namespace weft::int8::cpu::WEFT_CPU_LEVEL
