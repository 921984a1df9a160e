// The INT8 family's problem as plain structs: the contract of every backend.
//
//   t = (activation(x) - shift) / smooth                        N rows, C channels
//   q = clamp(rne(t / scale) + zero_point, -128, 127)           quantise
//   scale = max |t| / 127, zero_point = 0                       dynamic, symmetric
//   scale = (max t⁺ - min t⁻) / 255, zero_point = rne(-128 - min t⁻ / scale)      or not; t⁺, t⁻ with 0
//   x = (q - zero_point) · scale                                dequantise
//
//   y = activation(x · Wᵀ + bias) + residual                    linear, M × N × K
//   x · Wᵀ = Σ_g weight_scale[n, g] · Σ_{k in g} x̂[m, k] · (w[n, k] - weight_zero_point[n, g])
//
// where x̂ is, by `Operand`,
//   int8       x_scale[m] · (q[m, k] - x_zero_point[m]), q given or quantised within
//   wide       x rounded to 2 (bfloat16) or 3 digits of 8 bits below the largest |x| of its row
//   outliers   int8 but for the columns where any |x| >= threshold: x itself there (LLM.int8,
//              arXiv 2208.07339)
//
// A group of all of t that is 0 has scale 1; no other scale is below the smallest normal float. What
// holds NaN or infinity has that for scale and q = 0, so that all that is made of it is NaN.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/rows.h"

namespace weft::int8 {

enum class Activation : uint8_t {
  none,
  relu,
  gelu,       // x · Φ(x)
  gelu_tanh,  // by tanh(√(2/π) · (x + 0.044715 · x³))
  silu,       // x · sigmoid(x)
  silu_mul,   // of rows of 2 C: silu(x[c]) · x[C + c]
};

// Which scale an element has: (row n, channel c) the one at n · row + c / group.
struct ScaleGrid {
  int64_t row = 0, group = 1;

  WEFT_INLINE int64_t at(int64_t n, int64_t c) const { return n * row + c / group; }
};

// Vectors of float32 over the channels, optional.
struct Smoothing {
  const float *shift = nullptr, *smooth = nullptr;
};

struct Quantize {
  int64_t N = 0, C = 0;
  Rows x;  // [N, C], or [N, 2 C] of silu_mul
  Activation activation = Activation::none;
  Smoothing smoothing;
  bool dynamic = true, symmetric = true;
  ScaleGrid grid;
  int64_t scales = 0;             // how many
  float* scale = nullptr;         // written if dynamic, else read
  int32_t* zero_point = nullptr;  // likewise; null: 0
  int8_t* q = nullptr;            // [N, C], or transposed [C, N]
  bool transposed = false;

  void* workspace = nullptr;  // as many bytes as workspace_bytes() says
};

struct Dequantize {
  int64_t N = 0, C = 0;
  Rows q;
  ScaleGrid grid;
  const float* scale = nullptr;
  const int32_t* zero_point = nullptr;
  void* x = nullptr;  // [N, C]
  DType dtype = DType::f32;
};

// A weight to be packed, [N, K] by strides, of int8 or, where bits is 4, of integers -8 … 7 in int8.
struct Pack {
  int64_t N = 0, K = 0;
  int bits = 8;
  const int8_t* weight = nullptr;
  int64_t row = 0, column = 0;  // strides
  void* packed = nullptr;
};

struct Unpack {
  int64_t N = 0, K = 0;
  int bits = 8;
  const void* packed = nullptr;
  int8_t* weight = nullptr;  // [N, K]
};

// Float32 [N, groups] by strides, fastest where `column` is 1.
struct GroupValues {
  const float* data = nullptr;
  int64_t column = 0, group = 0;

  WEFT_INLINE explicit operator bool() const { return data != nullptr; }
};

enum class Operand : uint8_t { int8, wide, outliers };

struct Linear {
  int64_t M = 0, N = 0, K = 0;
  Operand operand = Operand::int8;
  Rows x;  // [M, K]

  // How x becomes int8, unless it is: by given scales where they are, else dynamically by row.
  Smoothing smoothing;
  bool symmetric = true;
  const float* x_scale = nullptr;
  const int32_t* x_zero_point = nullptr;  // of x_scale; null: 0
  int64_t x_scale_row = 0;                // stride of both: 0 (one for all) or 1 (x is int8)
  float threshold = 0;                    // outliers

  int bits = 8;  // of the weight
  const void* packed = nullptr;
  GroupValues weight_scale, weight_zero_point;
  int64_t group = 0;  // of the depth: K / groups

  const void* bias = nullptr;  // [N]
  DType bias_dtype = DType::f32;
  Activation activation = Activation::none;
  Rows residual;  // [M, N]

  int64_t column = 0, columns = 0;  // of the result, those to compute: whole panels, or up to N
  bool prepared = false;  // the workspace is as the call before left it, of other columns alone

  void* out = nullptr;  // [M, columns]
  DType out_dtype = DType::f32;
  int64_t out_row = 0;               // elements from row to row
  const float* out_scale = nullptr;  // where out is int8
  int32_t out_zero_point = 0;

  void* workspace = nullptr;
};

}  // namespace weft::int8
