// Rows that a call appends to the cache that it attends to: k turned by RoPE, both quantised for int8
// caches, and q turned on its way into shared memory. Formulas: attention/params.h (Append, Rotary).
//
// A block of forward_sm80.h that is alone with the keys of its split, for there is one tile of rows and
// one of columns, writes those of the new rows that are its keys; behind a barrier of the block it
// reads them from the cache as it reads all others. So no block reads what another writes, and
// nothing depends on the order in which blocks run. Other calls (prompts, long appends) have a launch
// for each of the three: ops.h.
// Cost: what append_kernel, and rotary_kernel of k and q, move, less the turned q and k, which are not
// written and read again; the blocks at the ends of sequences wait for two trips to L2.
#pragma once

#include "attention/cuda/cache.h"

namespace weft::attention::cuda {

// Element d of a head's row, turned by the angles of a position, or as it is where there are none.
template <class X>
WEFT_DEVICE X turned(const Rotary& r, const X* row, int64_t position, int64_t d) {
  if (d >= r.R) return load(row + d);
  const int64_t half = r.R / 2, i = r.interleaved ? d / 2 : d % half;
  const int64_t first = r.interleaved ? 2 * i : i, second = r.interleaved ? 2 * i + 1 : i + half;
  const int64_t at = (max<int64_t>(0, min(position, r.rows - 1)) * half + i) *
                     static_cast<int64_t>(size_of(r.table_dtype));
  const auto angle = [&](const void* table) {
    return load_float(static_cast<const char*>(table) + at, r.table_dtype);
  };
  float u = convert<float>(load(row + first)), v = convert<float>(load(row + second));
  turn_pair(u, v, angle(r.cos), angle(r.sin));
  return convert<X>(d == first ? u : v);
}

// A warp writes a row of n elements x(d) into a cache, int8 or of X.
template <class X, class F>
WEFT_DEVICE void append_row(const Heads& cache, int64_t at, const Vectors& scales, int64_t scale_at,
                            int64_t n, const F& x) {
  const auto each = [&](const auto& f) {
    WEFT_NO_UNROLL
    for (int64_t d = lane(); d < n; d += kWarp) f(d);
  };
  if (cache.dtype != DType::i8)
    return each([&](int64_t d) { store(static_cast<X*>(cache.data) + at + d, x(d)); });
  float by = 0;
  if (scales.row != 0) {  // of the row's own
    each([&](int64_t d) {
      const float value = convert<float>(x(d));
      by = max_nan(by, value < 0 ? -value : value);
    });
    by = warp_reduce<kWarp>(by, [](float a, float b) { return max_nan(a, b); }) / 127;
    if (lane() == 0) store(scales.data + scale_at, by);
  } else {
    by = load(scales.data + scale_at);
  }
  if (by == 0) by = 1;  // of zeros
  each([&](int64_t d) {
    store(static_cast<int8_t*>(cache.data) + at + d, to_i8(convert<float>(x(d)) / by));
  });
}

// The new rows among the keys `own` of a split, by all warps of the block: K and V of a row are two
// tasks. The first split takes those before key 0, too, which leftpad leaves out.
template <class X>
WEFT_DEVICE void append_own(const Forward& p, const Sequence& e, int32_t b, int32_t k, Span own) {
  const int32_t used = load(p.sequences.used_k + b), first = used - e.k_row;  // key of new row 0
  const int32_t begin = max(own.begin == 0 ? -e.k_row : own.begin, first),
                end = min(own.end, first + static_cast<int32_t>(p.sequences.new_k));
  if (begin >= end) return;  // by far, where lengths say so
  for (int32_t task = static_cast<int32_t>(warp()); task < 2 * (end - begin);
       task += static_cast<int32_t>(threads() / kWarp)) {
    const int32_t t = begin + task / 2, j = t - first;
    const KeyPlace to = key_place(p.sequences, e, b, t);
    if (to.batch < 0 || to.batch >= p.caches) continue;  // not checked before
    const auto append = [&](const Heads& x, const Heads& cache, const Vectors& scales, int64_t n,
                            const auto& element) {
      const X* row = static_cast<const X*>(x.data) + b * x.batch + j * x.row + k * x.head;
      append_row<X>(cache, to.batch * cache.batch + to.row * cache.row + k * cache.head, scales,
                    to.batch * scales.batch + to.row * scales.row + k * scales.head, n,
                    [&](int64_t d) { return element(row, d); });
    };
    const Fresh& fresh = p.fresh;
    if (task % 2 == 0)
      append(fresh.k, p.k, p.k_scale, p.D, [&](const X* row, int64_t d) {
        return turned(fresh.turn, row, int64_t{used} + j, d);
      });
    else
      append(fresh.v, p.v, p.v_scale, p.Dv, [](const X* row, int64_t d) { return load(row + d); });
  }
}

}  // namespace weft::attention::cuda
