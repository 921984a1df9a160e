// Layouts by themselves, checked while this page is compiled. For library.cpp alone.
#pragma once

#include "gpu/gpu.h"

namespace weft::gpu::tests {

// Every element of the matrix is held once by the threads.
template <class Fragment>
constexpr bool covers(uint32_t threads) {
  bool held[Fragment::kRows * Fragment::kColumns] = {};
  for (uint32_t t = 0; t < threads; ++t)
    for (uint32_t i = 0; i < Fragment::kSize; ++i) {
      const Place at = Fragment::place(t, i);
      if (at.row >= Fragment::kRows || at.column >= Fragment::kColumns) return false;
      bool& here = held[at.row * Fragment::kColumns + at.column];
      if (here) return false;
      here = true;
    }
  return threads * Fragment::kSize == Fragment::kRows * Fragment::kColumns;
}
static_assert(covers<FragmentA<bf16>>(kWarp) && covers<FragmentB<bf16>>(kWarp));
static_assert(covers<FragmentA<tf32>>(kWarp) && covers<FragmentB<tf32>>(kWarp));
static_assert(covers<FragmentA<int8_t>>(kWarp) && covers<FragmentB<int8_t>>(kWarp));
static_assert(covers<FragmentC<float>>(kWarp));
static_assert(covers<WgmmaAccumulator<float, 8>>(kWarpgroup));
static_assert(covers<WgmmaAccumulator<int32_t, 24>>(kWarpgroup));
static_assert(covers<WgmmaAccumulator<float, 256>>(kWarpgroup));

// Some elements as the figures of the PTX ISA have them.
static_assert(FragmentA<bf16>::place(5, 0) == Place{1, 2});
static_assert(FragmentA<bf16>::place(5, 7) == Place{9, 11});
static_assert(FragmentA<tf32>::place(5, 2) == Place{1, 5});
static_assert(FragmentA<int8_t>::place(5, 15) == Place{9, 23});
static_assert(FragmentB<bf16>::place(5, 3) == Place{11, 1});
static_assert(FragmentB<tf32>::place(5, 1) == Place{5, 1});
static_assert(FragmentB<int8_t>::place(5, 4) == Place{20, 1});
static_assert(FragmentC<float>::place(5, 3) == Place{9, 3});
static_assert(WgmmaAccumulator<float, 64>::place(37, 7) == Place{25, 11});

// The rows that lanes name to ldmatrix are those whose words they then get.
template <class Fragment, uint32_t kMatrices, bool kColumns>
constexpr bool names_its_rows() {
  for (uint32_t m = 0; m < kMatrices; ++m)
    for (uint32_t l = 0; l < kWarp; ++l)
      for (uint32_t e = 0; e < Fragment::kInWord; ++e) {
        // Lane l gets the l % 4-th word of the row that lane 8m + l / 4 names.
        Place at = Fragment::named(8 * m + l / 4);
        (kColumns ? at.row : at.column) += l % 4 * Fragment::kInWord + e;
        if (at != Fragment::place(l, m * Fragment::kInWord + e)) return false;
      }
  return true;
}
static_assert(names_its_rows<FragmentA<bf16>, 4, false>());
static_assert(names_its_rows<FragmentA<tf32>, 4, false>());
static_assert(names_its_rows<FragmentA<int8_t>, 4, false>());
static_assert(names_its_rows<FragmentB<bf16>, 2, true>());
static_assert(names_its_rows<FragmentB<tf32>, 2, true>());
static_assert(names_its_rows<FragmentB<int8_t>, 2, true>());

template <class Fragment, uint32_t kMatrices, bool kRows>
constexpr bool names_its_columns() {
  for (uint32_t m = 0; m < kMatrices; ++m)
    for (uint32_t l = 0; l < kWarp; ++l)
      for (uint32_t e = 0; e < 2; ++e) {
        // Lane l gets the l / 4-th element of the row that lane 8m + 2 (l % 4) + e names.
        Place at = Fragment::named_transposed(8 * m + l % 4 * 2 + e);
        (kRows ? at.row : at.column) += l / 4;
        if (at != Fragment::place(l, 2 * m + e)) return false;
      }
  return true;
}
static_assert(names_its_columns<FragmentA<bf16>, 4, true>());
static_assert(names_its_columns<FragmentB<bf16>, 2, false>());

// Two neighbouring FragmentC are a FragmentA, and a WgmmaAccumulator is made of FragmentC.
constexpr bool results_are_operands() {
  for (uint32_t l = 0; l < kWarp; ++l)
    for (uint32_t i = 0; i < 8; ++i) {
      Place c = FragmentC<float>::place(l, i % 4);
      c.column += i / 4 * 8;
      if (c != FragmentA<f16>::place(l, i)) return false;
      const Place d = WgmmaAccumulator<float, 32>::place(96 + l, 8 + i);  // warp 3, from column 16
      if (d != Place{48 + c.row, 16 + c.column}) return false;
    }
  return true;
}
static_assert(results_are_operands());

// Every element of a tile has a place of its own in it, and 16 bytes stay together.
template <class Tile, class T>
constexpr bool fills(uint32_t mn_size, uint32_t k_size) {
  bool used[8192] = {};
  for (uint32_t mn = 0; mn < mn_size; ++mn)
    for (uint32_t k = 0; k < k_size; ++k) {
      const uint32_t at = Tile::index(mn, k);
      if (at >= Tile::kSize || used[at]) return false;
      used[at] = true;
    }
  return mn_size * k_size == Tile::kSize;
}
static_assert(fills<MatrixTile<bf16, Major::k, Swizzle::none, 64, 32>, bf16>(64, 32));
static_assert(fills<MatrixTile<bf16, Major::k, Swizzle::bytes64, 16, 64>, bf16>(16, 64));
static_assert(fills<MatrixTile<int8_t, Major::k, Swizzle::bytes128, 32, 256>, int8_t>(32, 256));
static_assert(fills<MatrixTile<bf16, Major::mn, Swizzle::none, 32, 16>, bf16>(32, 16));
static_assert(fills<MatrixTile<bf16, Major::mn, Swizzle::bytes32, 32, 64>, bf16>(32, 64));
static_assert(fills<MatrixTile<bf16, Major::mn, Swizzle::bytes128, 128, 16>, bf16>(128, 16));

// In the fourth row of a panel of 128 bytes units 0, 1, 2, 3 … stand as 3, 2, 1, 0 …
static_assert(MatrixTile<bf16, Major::k, Swizzle::bytes128, 64, 64>::index(3, 0) == 3 * 64 + 24);
static_assert(MatrixTile<bf16, Major::k, Swizzle::bytes128, 64, 128>::index(3, 64) ==
              64 * 64 + 3 * 64 + 24);
static_assert(MatrixTile<bf16, Major::mn, Swizzle::bytes128, 128, 64>::index(64, 3) ==
              64 * 64 + 3 * 64 + 24);
static_assert(MatrixTile<bf16, Major::k, Swizzle::bytes32, 64, 16>::index(4, 0) == 4 * 16 + 8);

// Descriptors, worked out by hand from the PTX ISA: A or B along K; B across, 64 rows of K; int8.
using AlongK = MatrixTile<bf16, Major::k, Swizzle::bytes128, 64, 64>;
using Across = MatrixTile<bf16, Major::mn, Swizzle::bytes128, 128, 64>;
using OfBytes = MatrixTile<int8_t, Major::k, Swizzle::bytes128, 64, 128>;
static_assert(AlongK::describe(0x1000).bits == 0x4000004000010100);
static_assert(AlongK::describe(0x1000).advanced(32).bits == 0x4000004000010102);
static_assert(Across::describe(0x1000).bits == 0x4000004002000100);
static_assert(Across::describe(0x1000).advanced(16 * 128).bits == 0x4000004002000180);
static_assert(OfBytes::describe(0x1000).bits == AlongK::describe(0x1000).bits);
static_assert(MatrixTile<bf16, Major::k, Swizzle::bytes64, 64, 32>::describe(0).bits ==
              0x8000002000010000);
static_assert(MatrixTile<bf16, Major::k, Swizzle::bytes32, 64, 16>::describe(0).bits ==
              0xC000001000010000);
static_assert(MatrixTile<bf16, Major::k, Swizzle::none, 64, 16>::describe(0).bits ==
              0x0000000800400000);
static_assert(MatrixTile<bf16, Major::mn, Swizzle::none, 64, 16>::describe(0).bits ==
              0x0000001000080000);

static_assert(is_wgmma_width<bf16>(40) && is_wgmma_width<int8_t>(24) &&
              is_wgmma_width<int8_t>(240) && is_wgmma_width<int8_t>(256));
static_assert(!is_wgmma_width<int8_t>(40) && !is_wgmma_width<bf16>(264) &&
              !is_wgmma_width<bf16>(12) && !is_wgmma_width<bf16>(0));

}  // namespace weft::gpu::tests
