// The attention family's problem as plain structs: the contract of every backend.
//
//   s = q · kᵀ · softmax_scale                      S queries, T keys, D elements; H heads, K of keys
//   s = softcap · tanh(s / softcap)                 where softcap > 0
//   s = s + bias - slope · |t - (i + offset)|       i the query, t the key, ALiBi: arXiv 2108.12409
//   s = -inf                                        outside the window, or where mask says false
//   lse = log(Σ exp(s) + exp(sink))                 sink: a learned logit that has no value
//   p = dropout(exp(s - lse)),  o = p · v
//   q8 = clamp(rne((o - shift) / smooth / scale))   the int8 end, instead of o
//
// Query i of S sees the keys i + offset - window_left … i + offset + window_right of T, both ends
// included; offset is T - S (bottom-right, as flash-attention) or 0 (top-left, as torch). A causal
// call has window_right = 0. A row that sees nothing gives o = 0 and lse = -inf (or its sink).
// Query head h reads key head h / (H / K).
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/philox.h"

namespace weft::attention {

constexpr int64_t kMostElements = 512;  // of a head: D, Dv

// [batch, rows, heads, elements], elements contiguous. A packed batch (cu_seqlens) has no batch
// stride: sequence b begins at row cu_seqlens[b]. Of a paged cache, batch counts the pages.
struct Heads {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch = 0, row = 0, head = 0;  // strides, in elements

  WEFT_INLINE explicit operator bool() const { return data != nullptr; }

  WEFT_INLINE char* at(int64_t b, int64_t r, int64_t h) const {
    return static_cast<char*>(data) +
           (b * batch + r * row + h * head) * static_cast<int64_t>(size_of(dtype));
  }
};

// [B, H, S, T], any strides, 0 where broadcast: an additive bias, or a mask (boolean, true: seen).
struct Scores {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t batch = 0, head = 0, row = 0, column = 0;

  WEFT_INLINE explicit operator bool() const { return data != nullptr; }

  WEFT_INLINE char* at(int64_t b, int64_t h, int64_t s, int64_t t) const {
    return static_cast<char*>(data) +
           (b * batch + h * head + s * row + t * column) * static_cast<int64_t>(size_of(dtype));
  }
};

// Float32 by head and, unless the stride is 0, by batch or row: slopes, sinks, scales.
struct Vectors {
  float* data = nullptr;
  int64_t batch = 0, row = 0, head = 0;

  WEFT_INLINE explicit operator bool() const { return data != nullptr; }
  WEFT_INLINE float& at(int64_t b, int64_t r, int64_t h) const {
    return data[b * batch + r * row + h * head];
  }
};

// Where the sequences of a batch lie. int32, all but the first two optional.
struct Sequences {
  const int32_t* cu_q = nullptr;         // [B + 1]: packed queries
  const int32_t* cu_k = nullptr;         // [B + 1]: packed keys
  const int32_t* used_q = nullptr;       // [B]: how many queries count; the rest give 0 and -inf
  const int32_t* used_k = nullptr;       // [B]: how many keys count, those before leftpad included
  int64_t new_k = 0;                     // … and so many behind them, which this call appends
  const int32_t* leftpad = nullptr;      // [B]: keys before these do not exist
  const int32_t* cache_row = nullptr;    // [B]: which row of k and v, instead of b
  const int32_t* block_table = nullptr;  // [B, table_stride]: key t of b lies in page
  int64_t table_stride = 0, page_size = 0;  // block_table[b][t / page_size], row t % page_size
};

// What is fixed by the options alone, shared by forward and backward.
struct Problem {
  int64_t B = 0, S = 0, T = 0;  // S, T: the longest of each, where lengths differ
  int64_t H = 0, K = 0, D = 0, Dv = 0;
  int64_t total_q = 0, total_k = 0;  // rows of packed tensors
  int64_t caches = 0;                // rows of a cache, as cache_row counts them, or pages
  Sequences sequences;

  double softmax_scale = 1, softcap = 0;
  int64_t window_left = -1, window_right = -1;  // -1: unbounded
  bool top_left = false;
  bool allow_tf32 =
      false;  // products of float32 may round their operands to tf32, where there is one
  Scores bias, mask;
  Vectors alibi, sinks;
  Dropout dropout;  // score (b, h, s, t) is element ((b · H + h) · S + s) · T + t of the mask

  // One sequence: where its rows begin and how many there are.
  struct Extent {
    int64_t q_batch, q_row, S;  // first query: row q_row of batch entry q_batch
    int64_t k_batch, k_row, T;  // first key, likewise (before any block table)
  };
  WEFT_INLINE Extent extent(int64_t b) const {
    const Sequences& q = sequences;
    Extent e = {b, 0, S, q.cache_row ? q.cache_row[b] : b, 0, T};
    if (q.cu_q) e = {0, q.cu_q[b], q.cu_q[b + 1] - q.cu_q[b], e.k_batch, 0, T};
    if (q.cu_k) e.k_batch = 0, e.k_row = q.cu_k[b], e.T = q.cu_k[b + 1] - q.cu_k[b];
    if (q.used_q) e.S = q.used_q[b];
    if (q.used_k) e.T = q.used_k[b] + q.new_k;
    if (q.leftpad) e.k_row += q.leftpad[b], e.T -= q.leftpad[b];
    return e;
  }
};

// New keys and values into a cache, behind those that are there:
//   row used_k[b] + j of sequence b takes new row j
//   scale = max |x| / 127 over a row's elements, or given; x8 = clamp(rne(x / scale))   int8 caches
struct Append {
  int64_t B = 0, S = 0, T = 0, K = 0, D = 0, Dv = 0;  // S new rows, or cu_new's; T rows of cache
  Sequences sequences;                                // used_k: how many rows are there already
  int64_t caches = 0;                                 // rows of the cache, or pages
  const int32_t* cu_new = nullptr;
  Heads k, v;  // the new rows
  Heads k_cache, v_cache;
  Vectors k_scale, v_scale;  // of int8 caches: written by row, or given where the row stride is 0
};

// RoPE, arXiv 2104.09864: pairs (x[i], x[i + R/2]), or (x[2i], x[2i + 1]) where interleaved, turn by
// the angle whose cos and sin stand at row position + step · s; elements from R on stay.
struct Rotary {
  int64_t B = 0, S = 0, H = 0, D = 0, R = 0;
  Heads x, out;                               // may be the same
  const void *cos = nullptr, *sin = nullptr;  // [rows, R / 2], contiguous
  DType table_dtype = DType::f32;
  int64_t rows = 0;
  const int32_t* cu_seqlens = nullptr;  // packed x, of `total` rows
  int64_t total = 0;
  const int32_t* offsets = nullptr;  // [B], else offset
  int64_t offset = 0, step = 1;
  bool interleaved = false, conjugate = false;  // conjugate: turn back
};

// Rows that a call appends to the cache that it attends to, by the kernel that attends: k and v,
// sequences.new_k rows of each sequence. `turn` is q's: the keys turn by the same table, one row of it
// after the other. Its x and out do not count.
struct Fresh {
  Heads k, v;
  Rotary turn;

  WEFT_INLINE explicit operator bool() const { return k.data != nullptr; }
};

struct Forward : Problem {
  Heads q, k, v, out;
  Fresh fresh;
  Vectors k_scale, v_scale;  // of int8 k and v: by row where their row stride is not 0
  void* lse = nullptr;       // optional: [B, H, S], packed [H, total_q]; in the accumulator's type
  int64_t num_splits = 0;    // of the keys; 0: as plan() thinks best
  // The int8 end, where out is int8: [H, Dv] float32 each, optional, and one static scale.
  const float *out_shift = nullptr, *out_smooth = nullptr, *out_scale = nullptr;

  void* workspace = nullptr;  // as many bytes as workspace_bytes() says
};

// The gradients, given do and, where lse was used, dlse:
//
//   dp = dropout'(do · vᵀ),  δ = Σ do · o - dlse,  ds = p · (dp - δ)      p without dropout
//   dbias = ds,  ds = ds · (1 - tanh²) with softcap
//   dq = ds · k · softmax_scale,  dk = dsᵀ · q · softmax_scale,  dv = dropout(p)ᵀ · do
//   dsink = -Σ exp(sink - lse) · δ                                       over batch and rows
struct Backward : Problem {
  Heads q, k, v, out, dout;
  const void *lse = nullptr, *dlse = nullptr;  // as Forward's
  Heads dq, dk, dv;
  Scores dbias;             // [B, H, S, T], no stride 0
  float* dsinks = nullptr;  // [H]

  void* workspace = nullptr;
};

// o = Σ exp(lse_p - lse) · o_p,  lse = log Σ exp(lse_p)        over P parts of the keys
struct Merge {
  int64_t P = 0, B = 0, S = 0, H = 0, Dv = 0;
  Heads parts;                // batch stride of one part
  int64_t part = 0;           // stride from part to part
  const void* lse = nullptr;  // [P, B, H, S] by strides; in the accumulator's type
  int64_t lse_part = 0, lse_batch = 0, lse_head = 0, lse_row = 0;
  Heads out;
  void* lse_out = nullptr;  // [B, H, S]
};

}  // namespace weft::attention
