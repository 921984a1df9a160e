// The family's small ops. Formulas: attention/params.h.
//
//   append   a warp for a head of a new row: k, then v. Of int8 caches a lane keeps its elements in
//            registers, from the row's maximum to the rounding
//   rotary   a thread for a vector of pairs, or of elements that stay
//   merge    a warp for a head of a row of the result
//
// Rows that are vectors are moved 16 bytes at a time, others element by element.
// Cost: each element is read once and written once; memory bounds all three.
#pragma once

#include "attention/cuda/scores.h"

namespace weft::attention::cuda {

constexpr uint32_t kCacheThreads = 128;

// The sequence of packed row n, or none.
WEFT_DEVICE int64_t sequence_with(const int32_t* cu, int64_t B, int64_t n) {
  if (n < load(cu) || n >= load(cu + B)) return -1;
  return last_sequence(B, [&](int64_t b) { return load(cu + b) <= n; });
}

// Row n of a batch of S rows a sequence, or packed: of which sequence, which of its rows, and where.
struct BatchRow {
  int64_t b, row, batch, place;
};
WEFT_DEVICE BatchRow batch_row(const int32_t* cu, int64_t B, int64_t S, int64_t n) {
  if (!cu) return {n / S, n % S, n / S, n % S};
  const int64_t b = sequence_with(cu, B, n);
  return {b, b < 0 ? 0 : n - load(cu + b), 0, n};
}

// ---- append

template <bool kVector, class X>
WEFT_DEVICE void copy_row(const X* from, X* to, int64_t n) {
  constexpr int E = kVector ? kVecSize<X> : 1;
  for (int64_t d = lane() * E; d < n; d += kWarp * E) store(to + d, load<E>(from + d));
}

// x8 = clamp(rne(x / scale)); the scale is made of the row where it is written.
template <bool kVector, class X>
WEFT_DEVICE void quantise_row(const X* from, int8_t* to, float* scale, bool makes_scale,
                              int64_t n) {
  constexpr int E = kVector ? kVecSize<X> : 1, kMost = kMostElements / (kWarp * E);
  Vec<float, E> x[kMost];
  float most = 0;
  WEFT_UNROLL
  for (int i = 0; i < kMost; ++i) {
    const int64_t d = (int64_t{i} * kWarp + lane()) * E;
    if (d >= n) break;
    x[i] = convert<float>(load<E>(from + d));
    for (int j = 0; j < E; ++j) most = max_nan(most, x[i][j] < 0 ? -x[i][j] : x[i][j]);
  }
  float by;
  if (makes_scale) {
    by = warp_reduce<kWarp>(most, [](float a, float b) { return max_nan(a, b); }) / 127;
    if (lane() == 0) store(scale, by);
  } else {
    by = load(scale);
  }
  if (by == 0) by = 1;  // of zeros
  WEFT_UNROLL
  for (int i = 0; i < kMost; ++i) {
    const int64_t d = (int64_t{i} * kWarp + lane()) * E;
    if (d >= n) break;
    Vec<int8_t, E> q;
    for (int j = 0; j < E; ++j) q[j] = to_i8(x[i][j] / by);
    store(to + d, q);
  }
}

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(kCacheThreads, 4)
void append_kernel(const Append p, int64_t rows) {
  const int64_t task = static_cast<int64_t>(block().x) * (threads() / kWarp) + warp();
  if (task >= rows * p.K) return;
  const int64_t h = task % p.K;
  const BatchRow from = batch_row(p.cu_new, p.B, p.S, task / p.K);
  if (from.b < 0) return;
  const Sequences& s = p.sequences;
  const int64_t row = from.row + (s.used_k ? load(s.used_k + from.b) : 0);
  if (row < 0 || row >= p.T) return;  // lengths and places are not checked before
  KeyPlace to = {s.cache_row ? load(s.cache_row + from.b) : from.b, row};
  if (s.block_table)
    to = {load(s.block_table + from.b * s.table_stride + row / s.page_size), row % s.page_size};
  if (to.batch < 0 || to.batch >= p.caches) return;

  const auto one = [&](const Heads& x, const Heads& cache, const Vectors& scales, int64_t n) {
    const X* source =
        static_cast<const X*>(x.data) + from.batch * x.batch + from.place * x.row + h * x.head;
    const int64_t at = to.batch * cache.batch + to.row * cache.row + h * cache.head;
    if (cache.dtype == DType::i8)
      quantise_row<kVector>(
          source, static_cast<int8_t*>(cache.data) + at,
          scales.data + to.batch * scales.batch + to.row * scales.row + h * scales.head,
          scales.row != 0, n);
    else
      copy_row<kVector>(source, static_cast<X*>(cache.data) + at, n);
  };
  one(p.k, p.k_cache, p.k_scale, p.D);
  one(p.v, p.v_cache, p.v_scale, p.Dv);
}

// ---- rotary

WEFT_DEVICE void turn_pair(float& u, float& v, float cos, float sin) {
  const float x = u;
  u = fma(x, cos, -(v * sin));
  v = fma(x, sin, v * cos);
}

// A head has R / 2 / E units of pairs, E first and E second elements or, interleaved, as many
// neighbours; then (D - R) / E that stay.
template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(kCacheThreads, 4)
void rotary_kernel(const Rotary p, int64_t rows) {
  constexpr int E = kVector ? kVecSize<X> : 1;
  const int64_t half = p.R / 2, turning = half / E, units = turning + (p.D - p.R) / E;
  int64_t unit = static_cast<int64_t>(block().x) * threads() + thread();
  if (unit >= rows * p.H * units) return;
  const int64_t n = unit / units / p.H, h = unit / units % p.H;
  unit %= units;
  const BatchRow at = batch_row(p.cu_seqlens, p.B, p.S, n);
  if (at.b < 0) return;
  const X* x =
      static_cast<const X*>(p.x.data) + at.batch * p.x.batch + at.place * p.x.row + h * p.x.head;
  X* y =
      static_cast<X*>(p.out.data) + at.batch * p.out.batch + at.place * p.out.row + h * p.out.head;
  if (unit >= turning) {
    const int64_t d = p.R + (unit - turning) * E;
    if (x != y) store(y + d, load<E>(x + d));
    return;
  }

  // Offsets are not checked before.
  const int64_t position = p.step * at.row + (p.offsets ? load(p.offsets + at.b) : p.offset);
  const int64_t i = unit * E,  // of the first pair
      row = max<int64_t>(0, min(position, p.rows - 1)) * half + i;
  const auto table = [&](const void* data) {
    if (p.table_dtype == DType::f32)
      return convert<float>(load<E>(static_cast<const float*>(data) + row));
    if (p.table_dtype == DType::bf16)
      return convert<float>(load<E>(static_cast<const bf16*>(data) + row));
    return convert<float>(load<E>(static_cast<const f16*>(data) + row));
  };
  const Vec<float, E> cos = table(p.cos), sin = table(p.sin);
  Vec<float, 2 * E> pairs;
  const int64_t first = p.interleaved ? 2 * i : i, second = p.interleaved ? 2 * i + E : i + half;
  const Vec<float, E> low = convert<float>(load<E>(x + first)),
                      high = convert<float>(load<E>(x + second));
  for (int j = 0; j < E; ++j) pairs[j] = low[j], pairs[E + j] = high[j];
  const auto turn = [&](int a, int b, int j) {
    turn_pair(pairs[a], pairs[b], cos[j], p.conjugate ? -sin[j] : sin[j]);
  };
  for (int j = 0; j < E; ++j)
    if (p.interleaved)
      turn(2 * j, 2 * j + 1, j);
    else
      turn(j, E + j, j);
  Vec<float, E> results[2];
  for (int j = 0; j < E; ++j) results[0][j] = pairs[j], results[1][j] = pairs[E + j];
  store(y + first, convert<X>(results[0]));
  store(y + second, convert<X>(results[1]));
}

// ---- merge

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(kCacheThreads, 4)
void merge_kernel(const Merge p) {
  constexpr int E = kVector ? kVecSize<X> : 1;
  const int64_t task = static_cast<int64_t>(block().x) * (threads() / kWarp) + warp();
  if (task >= p.B * p.S * p.H) return;
  const int64_t h = task % p.H, s = task / p.H % p.S, b = task / p.H / p.S;
  const float* lses =
      static_cast<const float*>(p.lse) + b * p.lse_batch + h * p.lse_head + s * p.lse_row;
  float most = -__builtin_inff(), total = 0;
  for (int64_t i = 0; i < p.P; ++i) most = max_nan(most, load(lses + i * p.lse_part));
  const float base = most == -__builtin_inff() ? 0.0f : most;
  const auto weight = [&](int64_t i) {
    const float lse = load(lses + i * p.lse_part);
    return lse == most ? 1.0f : exp2_approx((lse - base) * static_cast<float>(kLog2e));
  };
  const auto saw_nothing = [&](int64_t i) {
    return load(lses + i * p.lse_part) == -__builtin_inff();
  };
  for (int64_t i = 0; i < p.P; ++i)
    if (!saw_nothing(i)) total += weight(i);
  const float inverse = total == 0 ? 1.0f : 1 / total;
  const X* parts =
      static_cast<const X*>(p.parts.data) + b * p.parts.batch + s * p.parts.row + h * p.parts.head;
  X* out = static_cast<X*>(p.out.data) + b * p.out.batch + s * p.out.row + h * p.out.head;
  for (int64_t d = lane() * E; d < p.Dv; d += kWarp * E) {
    Vec<float, E> o = Vec<float, E>::filled(0);
    for (int64_t i = 0; i < p.P; ++i) {
      if (saw_nothing(i)) continue;
      const float w = weight(i);
      const Vec<float, E> part = convert<float>(load<E>(parts + i * p.part + d));
      for (int j = 0; j < E; ++j) o[j] = fma(w, part[j], o[j]);
    }
    for (int j = 0; j < E; ++j) o[j] *= inverse;
    store(out + d, convert<X>(o));
  }
  if (lane() == 0)
    store(static_cast<float*>(p.lse_out) + (b * p.H + h) * p.S + s,
          total == 0 ? -__builtin_inff() : fma(log2_exact(total), static_cast<float>(kLn2), most));
}

}  // namespace weft::attention::cuda
