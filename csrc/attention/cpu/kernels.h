// What a CPU level implements of attention's forward. forward_plan.cpp plans, splits and picks the
// level.
//
// The rows of one key head are the queries of all its heads, M = S · G with G = H / K: row r is
// query r / G of head r % G of the group, so that keys are packed once for the whole group.
#pragma once

#include <cstdint>

#include "attention/params.h"

namespace weft::attention::cpu {

// Keys that are taken together: what lies between two updates of a row's maximum.
WEFT_INLINE int64_t key_block(const Problem& p) { return p.D > 256 || p.Dv > 256 ? 128 : 256; }

// Rows [row_begin, row_end) of key head k of sequence b over the keys [key_begin, key_end) of it,
// which begin at a whole block.
struct ForwardTask {
  int64_t b, k, row_begin, row_end, key_begin, key_end;
  int64_t k_end;                 // decoding: all rows of key heads [k, k_end)
  const void* packed = nullptr;  // all blocks of the head's keys; null: the task packs for itself
  // Where one split of several leaves what it has: [row_end - row_begin, Dv], and [rows].
  void *part = nullptr, *part_lse = nullptr;  // in the accumulator's type
  bool first = true;                          // the split that counts the sink
};

struct ForwardKernels {
  int64_t (*packed_bytes)(const Forward&);  // of one block of keys
  // Packs the block of keys that begins with key `first` of key head k of sequence b.
  void (*pack)(const Forward&, int64_t b, int64_t k, int64_t first, void* packed);
  int64_t (*scratch_bytes)(const Forward&, int64_t rows, bool packs);
  void (*run)(const Forward&, const ForwardTask&, void* scratch);
  // Joins the splits of a task's rows, `stride` elements apart, and finishes them.
  void (*merge)(const Forward&, const ForwardTask&, int64_t splits, int64_t stride);
};

// The same for few rows, from keys as they lie.
struct DecodeKernels {
  bool (*takes)(const Forward&);
  int64_t (*scratch_bytes)(const Forward&, int64_t heads);
  void (*run)(const Forward&, const ForwardTask&, void* scratch);
};

}  // namespace weft::attention::cpu
