// What a CPU level implements of the INT8 family. The plans split the work and pick the level.
#pragma once

#include <cstdint>

#include "int8/cpu/packed.h"
#include "int8/params.h"

namespace weft::int8::cpu {

// ---- quantise

// The extremes of some t, 0 among them; magnitude is NaN or infinite where any of them is.
struct Extremes {
  float min = 0, max = 0, magnitude = 0;

  WEFT_INLINE void add(const Extremes& other) {
    min = other.min < min ? other.min : min;
    max = other.max > max ? other.max : max;
    if (!(magnitude >= other.magnitude) && magnitude == magnitude) magnitude = other.magnitude;
  }
};

struct Scale {
  float scale;
  int32_t zero_point;

  WEFT_INLINE Scale(float given, int32_t zero) : scale(given), zero_point(zero) {}
  WEFT_INLINE Scale(const Extremes& e, bool symmetric) : scale(1), zero_point(0) {
    constexpr float least = 1.17549435e-38f, most = 3.40282347e+38f;
    if (!(e.magnitude <= most)) {
      scale = e.magnitude;
      return;
    }
    const double span = symmetric ? static_cast<double>(e.magnitude) / 127
                                  : (static_cast<double>(e.max) - e.min) / 255;
    if (e.magnitude > 0) scale = span < least ? least : static_cast<float>(span);
    if (!symmetric) {  // rounded to nearest, ties to even: |x| < 2^51
      constexpr double magic = 0x1.8p52;
      zero_point =
          static_cast<int32_t>((-128 - e.min / static_cast<double>(scale)) + magic - magic);
    }
  }
  // Nothing can be divided by it: q is 0.
  WEFT_INLINE bool lost() const { return !(scale <= 3.40282347e+38f); }
};

constexpr int64_t kWaitingRows = 64;

struct QuantizeKernels {
  // Rows [begin, end) by the scales that are there, or, where each row has its own, by those that it
  // finds. scratch: row_floats(C) floats of the task's own, and where the result is transposed
  // kWaitingRows times as many bytes.
  void (*rows)(const Quantize&, int64_t begin, int64_t end, float* scratch);
  // The extremes of rows [begin, end): one, or one a channel.
  void (*extremes)(const Quantize&, int64_t begin, int64_t end, float* scratch, Extremes*);
  void (*dequantize)(const Dequantize&, int64_t begin, int64_t end);
};

// Floats that a row of t takes, in whole vectors of the widest level.
WEFT_INLINE int64_t row_floats(int64_t C) { return (C + 15) / 16 * 16; }

// ---- linear

// x as the products take it, for rows [first_row, …) of M. A row is `digits` rows of A.
struct Operands {
  int64_t first_row = 0;
  int digits = 1;                     // of x, the most significant first
  int64_t section = 0, sections = 0;  // of the depth: what int32 sums run over
  int8_t* a = nullptr;                // [rows · digits, lda], zeros behind K
  int64_t lda = 0;
  int32_t* init = nullptr;            // [rows · digits, sections]: what the sums begin with
  float* scale = nullptr;             // [rows]
  int32_t* zero_point = nullptr;      // [rows], null: 0
  const int32_t* outliers = nullptr;  // columns of x that are not in A
  int64_t outlier_count = 0;
  const float* bias = nullptr;  // [N] in whole panels
};

struct LinearKernels {
  void (*widen)(const void* from, DType, int64_t count, float* to);
  // flags[k] = 1 for the columns k of [begin, end) in which any |x| >= threshold, else 0.
  void (*find_outliers)(const Linear&, int64_t begin, int64_t end, uint8_t* flags);
  // Rows [begin, end) of A, counted from first_row. scratch: row_floats(K) floats.
  void (*prepare)(const Linear&, const Operands&, int64_t begin, int64_t end, float* scratch);
  // Rows [begin, end), counted likewise, of the panels [panel_begin, panel_end) of the result.
  void (*multiply)(const Linear&, const Operands&, int64_t begin, int64_t end, int64_t panel_begin,
                   int64_t panel_end);
};

}  // namespace weft::int8::cpu
