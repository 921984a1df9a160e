// Where the rows of a batch lie, and which keys a query sees, as kernels look them up.
#pragma once

#include "attention/params.h"
#include "gpu/gpu.h"

namespace weft::attention::cuda {

using namespace ::weft::gpu;

// Problem::extent, from tensors that only the GPU can read. They are not checked: lengths are cut to
// what the call's shapes allow, so that no value leads out of the queries, the results, the workspace
// or a cache's rows. Of key tensors, cache_row and block_table count as they stand.
struct Sequence {
  int32_t q_batch, q_row, k_batch, k_row;  // where the first query and key are
  int32_t S, T;
};
WEFT_DEVICE Sequence sequence_of(const Problem& p, int32_t b) {
  const Sequences& s = p.sequences;
  const auto cut = [](int64_t n, int64_t most) {
    return static_cast<int32_t>(max<int64_t>(0, min<int64_t>(n, most)));
  };
  Sequence e = {b, 0, b, 0, static_cast<int32_t>(p.S), static_cast<int32_t>(p.T)};
  if (s.cache_row) e.k_batch = load(s.cache_row + b);
  if (s.cu_q) {
    const int32_t begin = cut(load(s.cu_q + b), p.total_q), end = load(s.cu_q + b + 1);
    e.q_batch = 0, e.q_row = begin, e.S = cut(cut(end, p.total_q) - begin, p.S);
  }
  if (s.cu_k) {
    const int32_t begin = cut(load(s.cu_k + b), p.total_k), end = load(s.cu_k + b + 1);
    e.k_batch = 0, e.k_row = begin, e.T = cut(cut(end, p.total_k) - begin, p.T);
  }
  if (s.block_table) e.T = cut(e.T, s.table_stride * s.page_size);
  if (s.used_q) e.S = cut(load(s.used_q + b), e.S);
  if (s.used_k) e.T = cut(load(s.used_k + b) + s.new_k, e.T);
  if (s.leftpad) {
    const int32_t left = cut(load(s.leftpad + b), e.T);
    e.k_row += left, e.T -= left;
  }
  return e;
}

// The last of B sequences that begins(b), or the first. Who begins begins before all that follow.
template <class F>
WEFT_DEVICE int64_t last_sequence(int64_t B, const F& begins) {
  int64_t low = 0, high = B;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (begins(middle) ? low : high) = middle;
  }
  return low;
}

// Tile i of a packed batch, in tiles of `size` rows, `group` rows a query, that stand one after the
// other: sequence b has those from cu_q[b] · group / size + b on, of which the last may be empty. So
// their number does not depend on where sequences begin, which the host does not know (plan.h).
struct PackedTile {
  int32_t b, tile;  // tile: of the sequence; below 0: of none
};
WEFT_DEVICE PackedTile packed_tile(const Problem& p, int32_t group, int32_t size, int32_t i) {
  const auto first = [&](int64_t b) {
    const int64_t row = max<int64_t>(0, min<int64_t>(load(p.sequences.cu_q + b), p.total_q));
    return static_cast<int32_t>(row * group / size + b);
  };
  const int64_t b = last_sequence(p.B, [&](int64_t at) { return first(at) <= i; });
  return {static_cast<int32_t>(b), i - first(b)};
}

// Where key t of sequence b is: of a paged cache, batch is the page.
struct KeyPlace {
  int64_t batch, row;
};
WEFT_DEVICE KeyPlace key_place(const Sequences& s, const Sequence& e, int32_t b, int32_t t) {
  const int32_t row = e.k_row + t;
  if (!s.block_table) return {e.k_batch, row};
  const auto at = static_cast<uint32_t>(row), size = static_cast<uint32_t>(s.page_size);
  return {load(s.block_table + b * s.table_stride + at / size), at % size};
}

// Where query i of head h has its lse, or anything else that is [B, H, S], or [H, total_q] packed.
WEFT_DEVICE int64_t lse_index(const Problem& p, const Sequence& e, int64_t b, int64_t h,
                              int64_t i) {
  return p.sequences.cu_q ? h * p.total_q + e.q_row + i : (b * p.H + h) * p.S + i;
}

// ---- the window

// Keys [begin, end).
struct Span {
  int32_t begin, end;
  WEFT_INLINE bool empty() const { return begin >= end; }
};
WEFT_DEVICE Span intersect(Span a, Span b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }

// The key on query 0's diagonal.
WEFT_DEVICE int32_t key_offset(const Problem& p, const Sequence& e) {
  return p.top_left ? 0 : e.T - e.S;
}
// What query i sees. Both ends grow with i: queries i … j need the keys from i's begin to j's end,
// and all of them see those from j's begin to i's end.
WEFT_DEVICE Span keys_of(const Problem& p, const Sequence& e, int32_t i) {
  const int64_t at = static_cast<int64_t>(i) + key_offset(p, e), T = e.T;
  const auto inside = [&](int64_t t) { return static_cast<int32_t>(max<int64_t>(0, min(t, T))); };
  return {p.window_left < 0 ? 0 : inside(at - p.window_left),
          p.window_right < 0 ? e.T : inside(at + p.window_right + 1)};
}

// The queries of a sequence that see key t: the same from the other side.
WEFT_DEVICE Span queries_of(const Problem& p, const Sequence& e, int32_t t) {
  const int64_t at = static_cast<int64_t>(t) - key_offset(p, e), S = e.S;
  const auto inside = [&](int64_t i) { return static_cast<int32_t>(max<int64_t>(0, min(i, S))); };
  return {p.window_right < 0 ? 0 : inside(at - p.window_right),
          p.window_left < 0 ? e.S : inside(at + p.window_left + 1)};
}

}  // namespace weft::attention::cuda
