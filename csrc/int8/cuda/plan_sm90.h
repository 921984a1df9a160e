// Which products of int8 the kernels of sm_90a take, and with what tiles.
#pragma once

#include <optional>
#include <type_traits>

#include "core/inline.h"
#include "gpu/device.h"
#include "int8/params.h"

namespace weft::int8::cuda {

// The tiles. A block of three warpgroups has one that loads and two that multiply 64 rows each of the
// left operand by kRight rows of the right one, 128 bytes of K at a time, from a ring of kStages. One
// operand is x, the other the weight; with kSwapped the weight is left, so that few rows of x fill
// the products' narrow side.
//
//   shape   left         right        stages         sums              registers of the sums
//   wide    128 of x     256 of w     4 · 49152      in registers      128
//   square  128 of x     128 of w     4 · 32768      136 · 128 · 4     64
//   few64   128 of w     64 of x      8 · 24576      132 · 64 · 4      32
//   few16   128 of w     16 of x      11 · 18432     132 · 16 · 4      8
//
// Shared memory in bytes, of 232448. Two blocks of `wide` share a tile of the weight: each loads half
// of it, into both. The others' sums pass through shared memory, where the blocks of a cluster that
// have split K between them meet: sums of integers have the same bits in any order.
enum class ShapeSm90 : uint8_t { wide, square, few64, few16, weight_only64, weight_only128 };

template <class X, bool Swapped, uint32_t Right, uint32_t Stages, uint32_t Pair>
struct ShapeOf {
  using Element = X;  // of the right operand
  using Sum = std::conditional_t<sizeof(X) == 1, int32_t, float>;
  static constexpr bool kSwapped = Swapped, kInRegisters = Pair > 1;
  static constexpr uint32_t kLeft = 128, kRight = Right, kStages = Stages, kPair = Pair;
  static constexpr uint32_t kRows = Swapped ? Right : kLeft,  // of x
      kColumns = Swapped ? kLeft : Right;                     // of the result
  static constexpr uint32_t kDepth = 128, kThreads = 384;
  static constexpr uint32_t kStageBytes = (kLeft + kRight * sizeof(X)) * kDepth;
  static constexpr int kLoaderRegisters = 40, kRegisters = 232;
};
template <ShapeSm90>
struct Shape;
template <>
struct Shape<ShapeSm90::wide> : ShapeOf<int8_t, false, 256, 4, 2> {};
template <>
struct Shape<ShapeSm90::square> : ShapeOf<int8_t, false, 128, 4, 1> {};
template <>
struct Shape<ShapeSm90::few64> : ShapeOf<int8_t, true, 64, 8, 1> {};
template <>
struct Shape<ShapeSm90::few16> : ShapeOf<int8_t, true, 16, 11, 1> {};

// x of 16 bits beside an int8 weight, which is widened to its type in registers.
//
//   rows of x   stages         sums            registers of the sums, of a stage of the weight
//   64          6 · 32768      132 · 64 · 4    32, 32
//   128         3 · 49152      132 · 128 · 4   64, 32
template <class X, uint32_t kRows>
struct WeightOnlyShape : ShapeOf<X, true, kRows, kRows == 64 ? 6 : 3, 1> {};

// The order of tiles: strips of `height` rows of them, each column by column, so that the blocks that
// run together share what they read through L2.
struct Raster {
  uint32_t rows = 0, columns = 0, height = 1;

  struct Tile {
    uint32_t row, column;
  };
  WEFT_INLINE constexpr uint32_t tiles() const { return rows * columns; }
  WEFT_INLINE constexpr Tile tile(uint32_t i) const {
    const uint32_t first = i / (height * columns) * height, rest = i - first * columns;
    const uint32_t count = rows - first < height ? rows - first : height;
    return {first + rest % count, rest / count};
  }
};

struct PlanSm90 {
  ShapeSm90 shape = ShapeSm90::wide;
  Raster raster;            // of wide, tiles of two blocks
  uint32_t splits = 1;      // of K: blocks of a cluster
  uint32_t grid = 0;        // blocks; a multiple of the cluster
  bool tensor_out = false;  // tensor copies reach the result
};

// A product as the kernels take it: rows of x of x_row bytes, in int8, bf16 or f16, and of the weight of
// weight_row.
struct ProductSm90 {
  int64_t M = 0, N = 0, K = 0;
  const void* x = nullptr;
  DType x_dtype = DType::i8;
  int64_t x_row = 0;
  const int8_t* weight = nullptr;
  int64_t weight_row = 0;
  const void* out = nullptr;
  DType out_dtype = DType::f32;
};

// Not taken: K beyond 65536, of which int32 holds no sums; rows that do not begin at multiples of 16
// bytes, which tensor copies do not reach; up to 16 rows of 16-bit x, for which the tensor cores of
// one warp suffice.
std::optional<PlanSm90> plan_sm90(const ProductSm90& p, const gpu::Limits& limits);

}  // namespace weft::int8::cuda
