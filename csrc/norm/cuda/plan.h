// Who works on which rows and columns: pure functions of shapes and of the device.
//
// A team of threads takes a row, each thread chunks of columns: thread t of the team takes columns
// (v · lanes + t) · chunk … + chunk - 1 for v = 0, 1, … This depends on the width alone, so that a
// row's sums have the same bits in any company, at any alignment and in any kernel.
#pragma once

#include <cstdint>

#include "gpu/device.h"
#include "norm/params.h"

namespace weft::norm::cuda {

using gpu::Limits;

// Columns that a thread takes together: 16 bytes of x.
constexpr int chunk_of(DType x) { return x == DType::f32 ? 4 : 8; }

struct Geometry {
  uint32_t lanes = 1;    // threads of a team in one block: a power of two up to a warp, or warps
  uint32_t threads = 1;  // of a block
  uint32_t rows = 1;     // teams of a block
  uint32_t split = 1;    // blocks that share a row, as a cluster
  int64_t span = 0;      // columns of a row for each of those: a multiple of 8, unless all

  // Partial sums of a row that is wider than a warp.
  WEFT_INLINE constexpr uint32_t slots() const { return lanes > 32 ? lanes / 32 * split : 0; }
};

// A thread has up to `most` columns, unless that is not enough for the row: then as many as it
// takes.
Geometry geometry(int64_t C, int most, const Limits& limits);

// ---- forward
constexpr int kFew = 8, kMany = 32;  // columns of a thread in registers

struct ForwardPlan {
  Geometry geometry;
  bool usual = false;   // the kernel that keeps z in registers
  bool few = false;     // … kFew columns of it
  bool vector = false;  // chunks are moved in one access
  int64_t tile = 0;     // columns of z in shared memory, where not in registers
};
ForwardPlan plan(const Forward& p, const Limits& limits);

// ---- backward
constexpr int kHeld = 16;  // columns of a thread in registers, with their sums over the rows

struct BackwardPlan {
  Geometry geometry;
  bool usual = false, few = false, vector = false;  // as above
  bool rows = false, columns = false;               // which kernels run
  int64_t tile = 0;                                 // columns of a row in shared memory
  int64_t groups = 0;                               // of rows, each with sums of its own
  int64_t means_bytes = 0, workspace_bytes = 0;
};
BackwardPlan plan(const Backward& p, const Limits& limits);

}  // namespace weft::norm::cuda
