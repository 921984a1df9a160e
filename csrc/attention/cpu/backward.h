// What the backward of attention plans, and what its kernels work with. No size depends on the
// level.
#pragma once

#include <cstdint>

#include "attention/params.h"
#include "core/divide.h"

namespace weft::attention::cpu {

constexpr int64_t kQueries = 64;  // a block of queries: the columns of a tile of scores
constexpr int64_t kKeys = 96;     // a block of keys: its rows, 16 times a tile of 6

WEFT_INLINE int64_t padded(int64_t D) { return round_up(D, 64); }  // whole panels

// How a call is cut. The scores of one batch entry and key head are key blocks × lines, a line being
// a block of queries of one of the group's heads. Both sides are cut into `cells`, and the pieces
// whose coordinates have equal sums run side by side, one such diagonal after the other: every dQ
// takes its key blocks in ascending order, every dK its lines, however a call is cut. So the cut may
// follow the number of threads, and the bits do not.
struct BackwardPlan {
  int64_t cells;
  int64_t chunk;  // key blocks whose K, V, dK and dV a task holds at a time
  int64_t tasks, scratch_bytes, total;
  char* scratch;
  char *dq, *dk, *dv;  // where a call is cut: the sums, [blocks][rows][columns], block by block

  explicit BackwardPlan(const Backward&);

  // Blocks of queries (keys) before sequence b's, or a few more.
  WEFT_INLINE int64_t query_blocks(const Backward& p, int64_t b) const {
    const int32_t* cu = p.sequences.cu_q;
    return cu ? cu[b] / kQueries + b : b * ceil_div(p.S, kQueries);
  }
  WEFT_INLINE int64_t key_blocks(const Backward& p, int64_t b) const {
    const int32_t* cu = p.sequences.cu_k;
    return cu ? cu[b] / kKeys + b : b * ceil_div(p.T, kKeys);
  }
};

// One piece of the scores of batch entry b and key head `head`.
struct BackwardCell {
  int64_t b, head, line, key;
};

struct BackwardKernels {
  void (*cell)(const Backward&, const BackwardPlan&, BackwardCell, char* scratch);
  void (*sink)(const Backward&, int64_t head);  // dsinks[head]
};

// A task's scratch. Pieces are counted in accumulators, whatever stands in them.
struct BackwardScratch {
  char *keys, *values, *keys_t, *dk, *dv;         // of a chunk of keys
  char *queries_t, *douts_t, *queries, *douts;    // of a block of queries
  char *shift, *delta, *position, *first, *last;  // of its rows
  char *p, *dp, *p_rows, *ds_rows, *ds_panel;     // of a block of both
  char *added, *seen, *kept, *slope;              // what options do to it
  char* dq;                                       // of a block of queries, or of a cell's
  int64_t bytes;

  WEFT_INLINE BackwardScratch(const Backward& params, const BackwardPlan& plan, char* base) {
    const int64_t element = static_cast<int64_t>(size_of(acc_of(params.q.dtype)));
    const int64_t D = padded(params.D), Dv = padded(params.Dv), keys_in = plan.chunk * kKeys;
    const bool cut = plan.cells > 1;  // the sums are in the plan's keeping
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      char* piece = base + used;
      used += round_up(count * element, 64);
      return piece;
    };
    keys = take(keys_in * D), values = take(keys_in * Dv), keys_t = take(keys_in * D);
    dk = take(cut ? 0 : keys_in * D), dv = take(cut ? 0 : keys_in * Dv);
    queries_t = take(kQueries * D), douts_t = take(kQueries * Dv);
    queries = take(kQueries * D), douts = take(kQueries * Dv);
    shift = take(kQueries), delta = take(kQueries), position = take(kQueries);
    first = take(kQueries), last = take(kQueries);
    constexpr int64_t tile = kKeys * kQueries;
    p = take(tile), dp = take(tile);
    p_rows = take(tile), ds_rows = take(tile), ds_panel = take(tile);
    // As the gradient of bias, `added` is read by whole squares of lanes.
    added = take(params.bias || params.dbias ? tile + 16 * kQueries : 0),
    seen = take(params.mask ? tile : 0);
    kept = take(params.dropout.p != 0 ? tile : 0), slope = take(params.softcap > 0 ? tile : 0);
    const bool whole = plan.chunk * kKeys >= params.T;  // one chunk: a line's dQ comes at once
    dq = take(cut     ? 0
              : whole ? kQueries * D
                      : params.H / params.K * ceil_div(params.S, kQueries) * kQueries * D);
    bytes = used;
  }
};

}  // namespace weft::attention::cpu
