// The rows that are to be quantised, as quantize.h's kernel gets them.
#pragma once

#include "int8/params.h"

namespace weft::int8::cuda {

struct QuantizeCall {
  Quantize p;
  int64_t span = 0;    // channels of a segment
  uint32_t lanes = 1;  // of its team: a power of two up to 32, or all threads of the block
  int64_t q_row = 0;   // stride of q's rows

  // Of a linear layer alone.
  int64_t columns = 0;                // those of q, from C on, are 0
  const uint8_t* left_out = nullptr;  // [C]: is the column 0?
  float* row_scale = nullptr;         // [N]: the scale, NaN where the row holds no numbers
  int32_t* row_zero_point = nullptr;  // [N]
};

}  // namespace weft::int8::cuda
