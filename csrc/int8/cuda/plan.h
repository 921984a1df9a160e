// Which kernels a call takes and who works on what: pure functions of shapes and of the device.
#pragma once

#include <cstdint>

#include "gpu/device.h"
#include "int8/cuda/plan_sm90.h"
#include "int8/params.h"

namespace weft::int8::cuda {

using gpu::Limits;

// ---- quantise

struct QuantizePlan {
  bool vector = false;              // chunks of 16 bytes of x are moved in one access
  int64_t span = 0;                 // channels that share a scale in a row: a segment
  uint32_t lanes = 1;               // of the team that takes one …
  uint32_t threads = 1, teams = 1;  // … in a block of so many threads and teams

  // Scales that rows share: blocks for columns and rows, and what they leave.
  bool shared = false;
  int64_t column_blocks = 1, row_blocks = 1, scales = 1, parts = 1;
  int64_t found_bytes = 0;      // [parts, scales] of 16 bytes
  int64_t workspace_bytes = 0;  // these, then of a transposed result its rows
};
QuantizePlan plan(const Quantize& p, const Limits& limits);

// ---- linear

// A tile of the sm_80 products: m × n sums of warps_m · warps_n warps, 128 bytes of K at a time.
struct GemmTile {
  int m, n, warps_m, warps_n, stages;

  constexpr int threads() const { return 32 * warps_m * warps_n; }
};
enum class GemmShape : uint8_t { large, medium, small };
// The ring of stages takes 96, 64 and 72 KiB, so that GPUs with 99 KiB of shared memory have room for
// a block; sums take 64, 32 and 16 registers of a thread.
constexpr GemmTile gemm_tile(GemmShape shape) {
  switch (shape) {
    case GemmShape::large:
      return {128, 128, 2, 4, 3};
    case GemmShape::medium:
      return {64, 64, 2, 2, 4};
    default:
      return {16, 128, 1, 4, 4};
  }
}

constexpr int64_t kDepth = 128;               // of K, in a stage
constexpr int64_t kMostDepth = 512 * kDepth;  // whose sums fit int32

struct GemmPlan {
  GemmShape shape = GemmShape::large;
  uint32_t tiles_m = 0, tiles_n = 0;
  uint32_t splits = 1;      // of K, for each a block …
  int64_t split_steps = 0;  // … that takes so many times 128 of it
  int64_t rounds = 1;       // … one after the other, of as many splits
};
GemmPlan plan_gemm(int64_t M, int64_t N, int64_t K, const Limits& limits);

// Who makes y by weight_only.h: a block has `warps_n` teams of 16 · 2 rows of the weight, each of as many
// warps as there are shares of K.
struct WeightOnlyPlan {
  bool fragments = false;  // by the tensor cores
  int tokens = 8;          // rows of x, of a block: 8 or 32
  uint32_t warps_n = 1, warps_k = 8;
  uint32_t blocks_n = 0, blocks_m = 0;
};
WeightOnlyPlan plan_weight_only(const Linear& p, const Limits& limits);

// Where the pieces of a linear layer's workspace lie, in bytes from its begin; -1: there is none.
struct LinearPlan {
  bool rows_as_they_are = false;  // the products read x itself
  int64_t x_row = 0;              // bytes from row to row of A
  int64_t a = -1, scale = -1, zero_point = -1;
  int64_t found = -1, left_out = -1, columns = -1, count = -1;  // of outliers
  int64_t parts = -1;   // [splits, M, N] of int32, where a launch of its own ends the products
  int64_t totals = -1;  // [M, N] of int64, where these have several rounds
  QuantizePlan quantize, outliers;
  std::optional<PlanSm90> sm90;  // of the products, which its kernels then make; else …
  GemmPlan gemm;
  int64_t workspace_bytes = 0;
};
LinearPlan plan(const Linear& p, const Limits& limits);
// The products, of rows of x that begin at `x`.
ProductSm90 product_of(const Linear& p, const void* x, DType x_dtype, int64_t x_row);
// How x is quantised within, and by which columns' extremes outliers are found.
Quantize quantization_of(const Linear& p);
Quantize extremes_of(const Linear& p);

}  // namespace weft::int8::cuda
