// Where the elements of matrices lie: in the registers of a warp for mma (mma.h), of a warpgroup
// for wgmma (wgmma.h), and in tiles of shared memory. A product is D[M, N] += A[M, K] · B[K, N]; one
// instruction takes 32 bytes of K: 16 elements of 16 bits, 8 of tf32, 32 of int8.
#pragma once

#include <type_traits>

#include "core/dtype.h"
#include "gpu/convert.h"
#include "gpu/shared.h"
#include "gpu/tma.h"

namespace weft::gpu {

// An element of a matrix.
struct Place {
  uint32_t row, column;
  constexpr bool operator==(const Place&) const = default;
};

// A float whose low 13 bits the tensor cores do not look at.
struct tf32 {
  uint32_t bits;
};

// ------------------------------------------------------------------------------- registers of a warp

// A[16, K]: four words a lane, each of adjacent elements of a row. In words, lane.word:
//
//                16 bytes of K               the next 16
//          ┌──────┬──────┬──────┬──────┬──────┬──────┬──────┬──────┐
//   row 0  │  0.0 │  1.0 │  2.0 │  3.0 │  0.2 │  1.2 │  2.2 │  3.2 │
//   row 1  │  4.0 │  5.0 │  6.0 │  7.0 │  4.2 │  5.2 │  6.2 │  7.2 │
//    …     │   …                       │   …                       │
//   row 7  │ 28.0 │ 29.0 │ 30.0 │ 31.0 │ 28.2 │ 29.2 │ 30.2 │ 31.2 │
//   row 8  │  0.1 │  1.1 │  2.1 │  3.1 │  0.3 │  1.3 │  2.3 │  3.3 │
//    …     │   …                       │   …                       │
//   row 15 │ 28.1 │ 29.1 │ 30.1 │ 31.1 │ 28.3 │ 29.3 │ 30.3 │ 31.3 │
//          └──────┴──────┴──────┴──────┴──────┴──────┴──────┴──────┘
//
// For wgmma, warp w of the warpgroup holds rows 16w … 16w + 15 of A[64, K] like this.
template <class T>
struct FragmentA {
  static constexpr uint32_t kRows = 16, kColumns = 32 / sizeof(T);
  static constexpr uint32_t kInWord = 4 / sizeof(T);          // elements
  static constexpr uint32_t kSize = 4 * kInWord;              // elements of a lane
  static constexpr uint32_t kMatrixColumns = 16 / sizeof(T);  // of one of ldmatrix's

  Vec<uint32_t, 4> words;

  // Row and k of a lane's i-th element.
  WEFT_INLINE static constexpr Place place(uint32_t lane, uint32_t i) {
    const uint32_t word = i / kInWord;
    return {lane / 4 + word % 2 * 8, lane % 4 * kInWord + i % kInWord + word / 2 * kMatrixColumns};
  }
  // Row and k of the 16 bytes that a lane names to ldmatrix<4>, for A in rows of K …
  WEFT_INLINE static constexpr Place named(uint32_t lane) {
    return {lane % 16, lane / 16 * kMatrixColumns};
  }
  // … and to ldmatrix_transposed<4>, for A in columns: 16 bytes of M for each k.
  WEFT_INLINE static constexpr Place named_transposed(uint32_t lane) {
    return {lane / 8 % 2 * 8, lane % 8 + lane / 16 * 8};
  }
};

// B[K, 8]: two words a lane, each of adjacent elements of a column. In words, lane.word:
//
//               n 0    n 1          n 7
//             ┌──────┬──────┬────┬──────┐
//             │  0.0 │  4.0 │  … │ 28.0 │
//    16 bytes │  1.0 │  5.0 │  … │ 29.0 │
//      of K   │  2.0 │  6.0 │  … │ 30.0 │
//             │  3.0 │  7.0 │  … │ 31.0 │
//             ├──────┼──────┼────┼──────┤
//       the   │  0.1 │  4.1 │  … │ 28.1 │
//     next 16 │   …                     │
//             └──────┴──────┴────┴──────┘
template <class T>
struct FragmentB {
  static constexpr uint32_t kRows = 32 / sizeof(T), kColumns = 8;
  static constexpr uint32_t kInWord = 4 / sizeof(T);
  static constexpr uint32_t kSize = 2 * kInWord;
  static constexpr uint32_t kMatrixRows = 16 / sizeof(T);

  Vec<uint32_t, 2> words;

  // k and n of a lane's i-th element.
  WEFT_INLINE static constexpr Place place(uint32_t lane, uint32_t i) {
    return {lane % 4 * kInWord + i % kInWord + i / kInWord * kMatrixRows, lane / 4};
  }
  // k and n of the 16 bytes that a lane names to ldmatrix, for B in columns (each n its K elements):
  // <2> gives one fragment, <4> this one and its neighbour in n, words 2 and 3.
  WEFT_INLINE static constexpr Place named(uint32_t lane) {
    return {lane / 8 % 2 * kMatrixRows, lane % 8 + lane / 16 * 8};
  }
  // The same for ldmatrix_transposed, for B in rows: 16 bytes of N for each k.
  WEFT_INLINE static constexpr Place named_transposed(uint32_t lane) {
    return {lane % 16, lane / 16 * 8};
  }
};

// C[16, 8], and D: four elements a lane. lane.element:
//
//          ┌───────────┬───────────┬───────────┬───────────┐
//   row 0  │  0.0  0.1 │  1.0  1.1 │  2.0  2.1 │  3.0  3.1 │
//    …     │                       …                       │
//   row 7  │ 28.0 28.1 │ 29.0 29.1 │ 30.0 30.1 │ 31.0 31.1 │
//   row 8  │  0.2  0.3 │  1.2  1.3 │  2.2  2.3 │  3.2  3.3 │
//    …     │                       …                       │
//   row 15 │ 28.2 28.3 │ 29.2 29.3 │ 30.2 30.3 │ 31.2 31.3 │
//          └───────────┴───────────┴───────────┴───────────┘
template <class T>
struct FragmentC {
  static constexpr uint32_t kRows = 16, kColumns = 8, kSize = 4;

  Vec<T, 4> data;

  WEFT_INLINE constexpr T& operator[](uint32_t i) { return data.data[i]; }
  WEFT_INLINE constexpr const T& operator[](uint32_t i) const { return data.data[i]; }

  WEFT_INLINE static constexpr Place place(uint32_t lane, uint32_t i) {
    return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
  }
  WEFT_INLINE static constexpr FragmentC filled(T value) { return {Vec<T, 4>::filled(value)}; }
};

// D[64, N] of wgmma: warp w of the warpgroup holds rows 16w … 16w + 15, as N / 8 FragmentC side by
// side. `thread` is the thread's index in its warpgroup.
template <class T, int N>
struct WgmmaAccumulator {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  static constexpr uint32_t kRows = 64, kColumns = N, kSize = N / 2;

  T data[kSize];

  WEFT_INLINE constexpr T& operator[](uint32_t i) { return data[i]; }
  WEFT_INLINE constexpr const T& operator[](uint32_t i) const { return data[i]; }

  WEFT_INLINE static constexpr Place place(uint32_t thread, uint32_t i) {
    const Place within = FragmentC<T>::place(thread % kWarp, i % 4);
    return {thread / kWarp * 16 + within.row, i / 4 * 8 + within.column};
  }
};

// ---- the result of one product as A of the next, in 16 bits: what a lane holds of two neighbouring
// FragmentC is what it holds of the FragmentA of those 16 columns.
//
//   FragmentC, columns 0-7:  c0 c1 | c2 c3      columns 8-15:  c0 c1 | c2 c3
//   FragmentA:               word 0  word 1                    word 2  word 3
namespace detail {
template <class T>
WEFT_DEVICE uint32_t packed(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, bf16>) {
    const Vec<bf16, 2> pair = to_bf16(low, high);
    __builtin_memcpy(&word, &pair, sizeof word);
  } else {
    static_assert(std::is_same_v<T, f16>);
    const Vec<f16, 2> pair = to_f16(low, high);
    __builtin_memcpy(&word, &pair, sizeof word);
  }
  return word;
}
}  // namespace detail

template <class T>
WEFT_DEVICE FragmentA<T> fragment_a(const FragmentC<float>& left, const FragmentC<float>& right) {
  return {{{detail::packed<T>(left[0], left[1]), detail::packed<T>(left[2], left[3]),
            detail::packed<T>(right[0], right[1]), detail::packed<T>(right[2], right[3])}}};
}
// Columns 16k … 16k + 15.
template <class T, int N>
WEFT_DEVICE FragmentA<T> fragment_a(const WgmmaAccumulator<float, N>& d, uint32_t k) {
  const float* c = d.data + 8 * k;
  return {{{detail::packed<T>(c[0], c[1]), detail::packed<T>(c[2], c[3]),
            detail::packed<T>(c[4], c[5]), detail::packed<T>(c[6], c[7])}}};
}

// ----------------------------------------------------------------------------------- shared memory

// In which direction the elements of an operand are neighbours: along K, or along M (for A) or N
// (for B).
enum class Major : uint8_t { k, mn };

// A matrix in shared memory as wgmma reads it; PTX ISA: Matrix Descriptor Format.
//
//   bits   0-13   14-15   16-29   30-31   32-45   46-48   49-51         52-61   62-63
//        ┌───────┬───────┬───────┬───────┬───────┬───────┬─────────────┬───────┬─────────┐
//        │ start │   0   │leading│   0   │stride │   0   │ base offset │   0   │ swizzle │
//        └───────┴───────┴───────┴───────┴───────┴───────┴─────────────┴───────┴─────────┘
//
// Addresses and offsets count 16 bytes; swizzles are 0 none, 1 128 bytes, 2 64, 3 32; the base
// offset is 0 for tiles aligned to 1024 bytes, as ours are. What leading and stride mean, by the
// direction and the swizzle (S bytes):
//
//                   leading                     stride
//   k,  none        the next 16 bytes of K      the next 8 rows of M or N
//   k,  swizzled    -                           the next 8 rows
//   mn, none        the next 8 k                the next 16 bytes of M or N
//   mn, swizzled    the next S bytes of M or N  the next 8 k
WEFT_INLINE constexpr uint64_t descriptor_bits(uint32_t address, uint32_t leading, uint32_t stride,
                                               Swizzle swizzle) {
  const uint64_t mode = (4 - static_cast<uint64_t>(swizzle)) & 3;
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{leading >> 4} << 16 |
         uint64_t{stride >> 4} << 32 | mode << 62;
}

// The descriptor of an operand of that element type and direction.
template <class T, Major kMajor>
struct MatrixDescriptor {
  uint64_t bits;
  // The start moved by so many bytes. Shared memory is smaller than what 14 bits count: no carry,
  // and the upper half stays the constant that it is.
  WEFT_INLINE constexpr MatrixDescriptor advanced(uint32_t bytes) const {
    const uint32_t low = static_cast<uint32_t>(bits) + (bytes >> 4);
    return {bits >> 32 << 32 | low};
  }
};

// A tile of A[M, K] or of B[K, N], both called [MN, K], in panels: each is as wide, in the tile's
// direction, as its swizzle, and as long as the tile. A panel is what one TMA box with that swizzle
// writes, with box = {kRun, kRows}; without swizzle a panel is 16 bytes wide.
//
//   k-major, 128 bytes, 16 bits a number:                mn-major:
//
//           k 0-7  8-15  …  56-63  │ k 64-71                   mn 0-7  8-15  …  56-63 │ mn 64-71
//         ┌──────┬──────┬─┬──────┐ ┌──────                   ┌──────┬──────┬─┬──────┐ ┌──────
//   mn 0  │  0   │  1   │…│  7   │ │                    k 0  │  0   │  1   │…│  7   │ │
//   mn 1  │  1   │  0   │…│  6   │ │ panel 1            k 1  │  1   │  0   │…│  6   │ │ panel 1
//    …    │                      │ │                     …   │                      │ │
//   mn 7  │  7   │  6   │…│  0   │ │                    k 7  │  7   │  6   │…│  0   │ │
//   mn 8  │  0   │  1   │…│  7   │ │                    k 8  │  0   │  1   │…│  7   │ │
//
// The numbers: in which 16 bytes of its row, which is 128 bytes of shared memory, they are stored.
template <class T, Major kMajor, Swizzle kSwizzle, int kMN, int kK>
struct MatrixTile {
  static constexpr uint32_t kPanelBytes = 16u << static_cast<int>(kSwizzle);  // of a row
  static constexpr uint32_t kRun = kPanelBytes / sizeof(T);                   // elements of a row
  static constexpr uint32_t kRows = kMajor == Major::k ? kMN : kK;
  static constexpr uint32_t kPanels = (kMajor == Major::k ? kK : kMN) / kRun;
  static constexpr uint32_t kSize = uint32_t{kMN} * kK;  // elements
  static_assert(kRows % 8 == 0 && kSize == kPanels * kRun * kRows, "a tile has whole panels");

  WEFT_INLINE static constexpr Shared<T> take(SharedLayout& layout) {
    return layout.take<T>(kSize, kSharedAlignment);
  }

  // Where an element lies in the tile.
  WEFT_INLINE static constexpr uint32_t index(uint32_t mn, uint32_t k) {
    return swizzled<kSwizzle>(unswizzled(mn, k)) / static_cast<uint32_t>(sizeof(T));
  }
  WEFT_INLINE static constexpr uint32_t panel(uint32_t i) { return i * kRun * kRows; }

  // The part from (mn, k) on: mn a multiple of 8, of kRun in mn-major tiles; k of the K of one
  // wgmma. The hardware swizzles the address that the descriptor leads to, so that the start is
  // moved as if there were no swizzle.
  WEFT_DEVICE static MatrixDescriptor<T, kMajor> descriptor(Shared<T> tile, uint32_t mn = 0,
                                                            uint32_t k = 0) {
    return describe(tile.address()).advanced(unswizzled(mn, k));
  }
  WEFT_INLINE static constexpr MatrixDescriptor<T, kMajor> describe(uint32_t address) {
    constexpr uint32_t rows8 = 8 * kPanelBytes, next_panel = kRows * kPanelBytes;
    if (kMajor == Major::k)
      return {
          descriptor_bits(address, kSwizzle == Swizzle::none ? next_panel : 16, rows8, kSwizzle)};
    if (kSwizzle == Swizzle::none) return {descriptor_bits(address, rows8, next_panel, kSwizzle)};
    return {descriptor_bits(address, next_panel, rows8, kSwizzle)};
  }

 private:
  WEFT_INLINE static constexpr uint32_t unswizzled(uint32_t mn, uint32_t k) {
    const uint32_t along = kMajor == Major::k ? k : mn, row = kMajor == Major::k ? mn : k;
    return (along / kRun * kRows + row) * kPanelBytes +
           along % kRun * static_cast<uint32_t>(sizeof(T));
  }
};

}  // namespace weft::gpu
