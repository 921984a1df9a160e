// What a CPU level implements of the norm family. norm.h plans, splits and picks the level.
//
// Two ways to split the work, chosen by shape alone so that results do not depend on the number of
// threads:
//   rows      a task takes whole rows;
//   columns   few wide rows: a task takes a tile of columns of one row, in two or three rounds.
#pragma once

#include <cstdint>

#include "norm/params.h"

namespace weft::norm::cpu {

// Columns that are taken together: a tile of z in fp32 is 16 KiB, half of an L1 cache.
constexpr int64_t kTile = 4096;

// Pairs of columns after which sums of accumulators go on in double.
constexpr int64_t kSumPairs = 128;

// Count, mean and Σ(z - mean)² of some elements; for RMSNorm Σz² alone.
struct Moments {
  double count, mean, m2;
};
// Chan, Golub, LeVeque 1979.
WEFT_INLINE Moments merge(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, delta = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * a.count * share};
}
// Extremes of t, zero among them, for the int8 end.
struct Range {
  double min, max;
};

// Rows that are few and wide are split by columns.
WEFT_INLINE bool by_columns(int64_t N, int64_t C) { return N < 16 && C >= 4 * kTile; }

constexpr int64_t kForwardScratch = 5;   // z, t, two dropout masks, 1 / smooth
constexpr int64_t kBackwardScratch = 2;  // two dropout masks, of rows or tiles

struct Kernels {
  // forward: rows [begin, end). scratch, unless z is x and the end no int8: kForwardScratch ·
  // padded(C) accumulators of the task's own.
  void (*forward_rows)(const Forward&, int64_t begin, int64_t end, void* scratch);
  // forward by columns: tile [begin, end) of row n. z keeps the row's sum where it is not x itself,
  // and its t behind that, keep its dropout masks.
  void (*forward_gather)(const Forward&, int64_t n, int64_t begin, int64_t end, void* z, void* keep,
                         Moments*);
  void (*forward_range)(const Forward&, int64_t n, int64_t begin, int64_t end, void* z, Moments,
                        Range*);
  void (*forward_finish)(const Forward&, int64_t n, int64_t begin, int64_t end, void* z, Moments,
                         Range);

  // backward: rows [begin, end), adding the weights' gradients to sums (slots as in backward.cpp).
  void (*backward_rows)(const Backward&, int64_t begin, int64_t end, void* sums, void* scratch);
  // backward by columns: Σg and Σg·x̂ over a tile; then the gradients of a tile of all rows.
  void (*backward_gather)(const Backward&, int64_t n, int64_t begin, int64_t end, double* g,
                          double* gx);
  void (*backward_finish)(const Backward&, int64_t begin, int64_t end, const double* g,
                          const double* gx, void* sums, void* scratch);
  // Adds `groups` partial sums for channels [begin, end) and stores them as the weights' gradients.
  void (*backward_reduce)(const Backward&, int64_t groups, int64_t begin, int64_t end,
                          const void* sums);

  void (*dropout_mask)(Dropout, int64_t first, int64_t count, int stream, bool* mask);
};

// Channels rounded up to whole pairs of the widest level, so that partial sums need no tails.
WEFT_INLINE int64_t padded(int64_t C) { return (C + 63) / 64 * 64; }

}  // namespace weft::norm::cpu
