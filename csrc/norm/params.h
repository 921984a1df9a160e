// The norm family's problem as plain structs: the contract of every backend.
//
//   u = dropout((x + x_bias) · rowscale · layerscale)                          N rows, C channels
//   z = u + dropout(x1) + residual_alpha · residual + residual2
//   x̂ = (z - mean) · rstd, rstd = 1 / sqrt(variance + eps)     LayerNorm, Ba et al., arXiv 1607.06450
//   x̂ = z · rstd,          rstd = 1 / sqrt(mean(z²) + eps)     RMSNorm, Zhang & Sennrich, arXiv 1910.07467
//   y = x̂ · weight + bias,  y1 = x̂ · weight1 + bias1           weight + 1 where zero_centered_weight
//   q = clamp(rne(t / scale) + zero_point), t = (y - shift) / smooth      the int8 end, instead of y
//
// Everything but x is optional: a view without data is absent.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/philox.h"
#include "core/rows.h"

namespace weft::norm {

// A vector over the channels, contiguous; `heads` of them where weights differ by the last leading
// dimension (row n takes n % heads).
struct Channels {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t heads = 1;

  WEFT_INLINE explicit operator bool() const { return data != nullptr; }
};

// A vector over the rows, contiguous.
struct PerRow {
  void* data = nullptr;
  DType dtype = DType::f32;

  WEFT_INLINE explicit operator bool() const { return data != nullptr; }
};

// The int8 end. Static: one scale for all (and zero_point). Dynamic: each row's own, written to
// scale_out and zero_point_out.
struct Int8End {
  Rows q;
  Channels shift, smooth;
  const float* scale = nullptr;       // static where present
  int32_t zero_point = 0;             // of the static scale
  bool symmetric = true;              // of the dynamic ones
  float* scale_out = nullptr;         // [N]
  int32_t* zero_point_out = nullptr;  // [N]

  WEFT_INLINE explicit operator bool() const { return q.data != nullptr; }
};

// What z is made of, shared by forward and int8.
struct Forward {
  int64_t N = 0, C = 0;
  bool rms = false, zero_centered = false;
  bool stream = false;  // write results past the caches
  double eps = 0, residual_alpha = 1;

  Rows x, residual, residual2, x1;
  Channels x_bias, layerscale;
  PerRow rowscale;
  Dropout dropout;
  DType z_dtype = DType::f32;  // what z is rounded to, kept or not, unless it is x itself

  Channels weight, bias, weight1, bias1;
  Rows y, y1, residual_out, mask, mask1;
  PerRow mean, rstd;  // in the accumulator's type
  Int8End int8;

  void* workspace = nullptr;  // as many bytes as plan() says

  // z is x itself: nothing is added, and nobody asked for a copy.
  WEFT_INLINE bool plain() const {
    return !x_bias.data && !rowscale.data && !layerscale.data && dropout.p == 0 && !x1.data &&
           !residual.data && !residual2.data && !residual_out.data;
  }
};

// The gradients, given g = ∂L/∂x̂ = dy · weight + dy1 · weight1:
//
//   dz = rstd · (g - mean(g) - x̂ · mean(g · x̂)) + dresidual_out        RMSNorm: without mean(g)
//   dresidual = residual_alpha · dz      dresidual2 = dz      dx1 = dropout'(dz)
//   dx = dropout'(dz) · layerscale · rowscale
//   dweight = Σ dy · x̂    dbias = Σ dy    dx_bias = Σ dx                    sums over the rows
//   dlayerscale = Σ dropout'(dz) · (x + x_bias) · rowscale
//
// x̂ comes from z and its statistics, or, memory-efficiently, from y: (y - bias) / weight.
struct Backward {
  int64_t N = 0, C = 0;
  bool rms = false, zero_centered = false, from_output = false;
  bool stream = false;
  double eps = 0, residual_alpha = 1;

  Rows dy, dy1, dresidual_out;
  Rows saved;  // z, or y where from_output
  PerRow mean, rstd;
  Channels weight, bias, weight1;
  Rows x;  // for dlayerscale alone
  Channels x_bias, layerscale;
  PerRow rowscale;
  Dropout dropout;

  DType x_dtype = DType::f32;  // decides the kernel; saved and dy may have others
  Rows dx, dx1, dresidual, dresidual2;
  Channels dweight, dbias, dweight1, dbias1, dx_bias, dlayerscale;

  void* workspace = nullptr;
};

}  // namespace weft::norm
