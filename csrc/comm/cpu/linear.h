// Products of floats on the CPU that collectives are computed with.
#pragma once

#include <cstdint>

#include "comm/params.h"

namespace weft::comm::cpu {

// Whether weft's own product is the faster one; where not, torch's serves.
bool takes(const Linear& p);
int64_t workspace_bytes(const Linear& p);
void linear(const Linear& p);

// What a level implements: rows [begin, end), at most kTaskRows, of one panel of columns.
struct LinearKernels {
  int64_t panel;      // columns of one
  int64_t tile_rows;  // that a kernel takes together
  bool (*takes)(DType dtype);
  void (*multiply)(const Linear&, int64_t begin, int64_t end, int64_t panel, void* scratch);
};

// At most. A task's scratch holds the packed weight and the sums of all its rows.
constexpr int64_t kTaskRows = 768, kMostColumns = 64, kPackedBytes = 256 << 10;
constexpr int64_t kScratchBytes = kPackedBytes + kTaskRows * kMostColumns * 4;

}  // namespace weft::comm::cpu
