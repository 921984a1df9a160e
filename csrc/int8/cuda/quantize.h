// Quantisation to int8 and back. Formulas: int8/params.h.
//
// Plan. A segment is what shares a scale in a row: a group, else the row. A team of threads takes one:
// a part of a warp up to 256 channels, else a block.
//   extremes   of t, where the segment finds its own scale: of its threads', then across lanes and warps
//   round      t, made again from x, which L1 or L2 still has, times 1 / scale, to the nearest
// Scales that rows share, of the tensor or of channels, take three launches: `extremes_kernel`, a block
// for 8 warps of rows by 32 chunks of columns, leaves those of its rows in the workspace, find_scales
// merges them, a warp for each scale, and the rounding is then by scales that are there.
//
// The same kernels make the rows of A for a linear layer: with zeros behind its columns, without the
// columns that hold outliers, and with NaN for the scale of a row that holds no numbers.
//
// Cost: x is read from memory once and q written once, 3 bytes an element of bfloat16, with some 20
// operations: bound by memory.
#pragma once

#include "int8/cuda/activation.h"
#include "int8/cuda/quantize_call.h"

namespace weft::int8::cuda {

constexpr float kLeastNormal = 1.17549435e-38f, kLargest = 3.40282347e+38f;

// ---- t

template <class X>
constexpr int kChunk = kVecSize<X>;  // elements that a thread takes together

// t of channels c … c + E - 1.
template <int E, class X>
WEFT_DEVICE Vec<float, E> transformed(const Quantize& p, const X* row, int64_t c) {
  Vec<float, E> t = convert<float>(load<E>(row + c));
  if (p.activation != Activation::none) activate<E>(p.activation, t);
  if (p.activation == Activation::silu_mul) {
    const Vec<float, E> up = convert<float>(load<E>(row + p.C + c));
    for (int i = 0; i < E; ++i) t[i] *= up[i];
  }
  if (p.smoothing.shift) {
    const Vec<float, E> by = load<E>(p.smoothing.shift + c);
    for (int i = 0; i < E; ++i) t[i] -= by[i];
  }
  if (p.smoothing.smooth) {
    const Vec<float, E> by = load<E>(p.smoothing.smooth + c);
    for (int i = 0; i < E; ++i) t[i] /= by[i];
  }
  return t;
}

// ---- scales

// The extremes of some t, 0 among them; magnitude is NaN or infinite where any of them is.
struct alignas(16) Extremes {
  float min = 0, max = 0, magnitude = 0, unused = 0;

  WEFT_DEVICE void add(float t) { add({t, t, t < 0 ? -t : t}); }
  WEFT_DEVICE void add(const Extremes& other) {
    min = other.min < min ? other.min : min;
    max = other.max > max ? other.max : max;
    magnitude = max_nan(magnitude, other.magnitude);
  }
};
struct MergeExtremes {
  WEFT_DEVICE Extremes operator()(Extremes a, const Extremes& b) const {
    a.add(b);
    return a;
  }
};

struct Scale {
  float scale = 1;
  int32_t zero_point = 0;

  WEFT_DEVICE Scale(float given, int32_t zero) : scale(given), zero_point(zero) {}
  WEFT_DEVICE Scale(const Extremes& e, bool symmetric) {
    if (!(e.magnitude <= kLargest)) {
      scale = e.magnitude;
      return;
    }
    const float span = symmetric ? e.magnitude / 127 : e.max / 255 - e.min / 255;
    if (e.magnitude > 0) scale = max(span, kLeastNormal);
    if (!symmetric) zero_point = to_i8(-128 - e.min / scale);
  }
};

// Floats to int8 by a scale: to nearest, ties to even. NaN becomes the zero point, and so does all by a
// scale that is no number.
class Quantizer {
 public:
  WEFT_DEVICE explicit Quantizer(const Scale& s)
      : inverse_(s.scale <= kLargest ? 1 / s.scale : 0.0f),
        least_(static_cast<float>(-128 - s.zero_point)),
        most_(static_cast<float>(127 - s.zero_point)),
        zero_(s.zero_point) {}

  WEFT_DEVICE int8_t operator()(float t) const {
    float v = t * inverse_;
    v = v == v ? v : 0.0f;
    v = min(max(v, least_), most_) + 0x1.8p23f;  // its low bits: the nearest integer
    int32_t bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return static_cast<int8_t>(bits - 0x4B400000 + zero_);
  }

 private:
  float inverse_, least_, most_;
  int32_t zero_;
};

// ---- rows

constexpr uint32_t kMostTeam = 512;
struct QuantizeShared {
  SharedLayout layout;
  Shared<Extremes> partial = layout.take<Extremes>(kMostTeam / kWarp);
};

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(kMostTeam, 1)
void quantize_kernel(WEFT_GRID_CONSTANT const QuantizeCall call) {
  constexpr int E = kVector ? kChunk<X> : 1;
  const Quantize& p = call.p;
  const QuantizeShared smem;
  const uint32_t lanes = call.lanes, teams = threads() / lanes, own = thread() % lanes;
  const int64_t in_row = p.C / call.span,
                segment = static_cast<int64_t>(block().x) * teams + thread() / lanes;
  const bool here = segment < p.N * in_row;
  const int64_t n = here ? segment / in_row : 0, first = here ? segment % in_row * call.span : 0,
                end = here ? first + call.span : 0;
  const X* const x = reinterpret_cast<const X*>(p.x.row(n));
  const auto t_at = [&](int64_t c) {
    Vec<float, E> t = transformed<E>(p, x, c);
    if (call.left_out)
      for (int i = 0; i < E; ++i) t[i] = load(call.left_out + c + i) ? 0.0f : t[i];
    return t;
  };

  Extremes found;
  if (p.dynamic || call.row_scale) {
    for (int64_t c = first + own * E; c < end; c += lanes * E) {
      const Vec<float, E> t = t_at(c);
      for (int i = 0; i < E; ++i) found.add(t[i]);
    }
    for (uint32_t by = min<uint32_t>(lanes, kWarp) / 2; by > 0; by /= 2)
      found.add(shuffle_xor(found, by));
    if (lanes > kWarp) {
      if (lane() == 0) smem.partial[warp()] = found;
      sync_block();
      found = lane() < lanes / kWarp ? Extremes(smem.partial[lane()]) : Extremes{};
      found = warp_reduce(found, MergeExtremes{});
    }
  }
  if (!here) return;

  // Of channels, each has a scale of its own.
  const bool by_channel = p.grid.row == 0 && p.grid.group == 1 && p.C > 1;
  const int64_t at = p.grid.at(n, first);
  Scale s(1, 0);
  if (p.dynamic)
    s = Scale(found, p.symmetric);
  else if (!by_channel)
    s = Scale(load(p.scale + at), p.zero_point ? load(p.zero_point + at) : 0);
  if (own == 0 && call.row_scale) {
    store(call.row_scale + n, s.scale + 0 * found.magnitude);
    if (call.row_zero_point) store(call.row_zero_point + n, s.zero_point);
  } else if (own == 0 && p.dynamic) {
    store(p.scale + at, s.scale);
    if (p.zero_point) store(p.zero_point + at, s.zero_point);
  }
  const Quantizer shared(s);
  int8_t* const q = p.q + n * call.q_row;
  for (int64_t c = first + own * E; c < end; c += lanes * E) {
    const Vec<float, E> t = t_at(c);
    Vec<int8_t, E> v;
    if (by_channel) {
      for (int i = 0; i < E; ++i)
        v[i] = Quantizer(
            Scale(load(p.scale + c + i), p.zero_point ? load(p.zero_point + c + i) : 0))(t[i]);
    } else {
      for (int i = 0; i < E; ++i) v[i] = shared(t[i]);
    }
    store(q + c, v);
  }
  for (int64_t c = p.C + own; c < call.columns; c += lanes) store(q + c, int8_t{0});
}

// ---- scales that rows share

constexpr uint32_t kExtremesThreads = 256, kExtremesWarps = kExtremesThreads / kWarp;

// What blocks find, for find_scales_kernel and collect_outliers_kernel: parts sets of `scales` each.
struct SharedScales {
  Quantize p;
  int64_t column_blocks = 1, row_blocks = 1;
  int64_t scales = 1, parts = 1;  // of channels: C, a part a row block; of the tensor: 1, a block
  Extremes* found = nullptr;      // [parts, scales]
};

template <int E>
struct ExtremesShared {
  SharedLayout layout;
  Shared<Extremes> partial = layout.take<Extremes>(kExtremesThreads * E);
};

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(kExtremesThreads, 1)
void extremes_kernel(WEFT_GRID_CONSTANT const SharedScales call) {
  constexpr int E = kVector ? kChunk<X> : 1;
  const Quantize& p = call.p;
  const ExtremesShared<E> smem;
  const int64_t column_block = block().x % call.column_blocks,
                row_block = block().x / call.column_blocks, c = (column_block * kWarp + lane()) * E;
  Extremes found[E];
  if (c < p.C)
    for (int64_t n = row_block * kExtremesWarps + warp(); n < p.N;
         n += call.row_blocks * kExtremesWarps) {
      const Vec<float, E> t = transformed<E>(p, reinterpret_cast<const X*>(p.x.row(n)), c);
      WEFT_UNROLL
      for (int i = 0; i < E; ++i) found[i].add(t[i]);
    }
  WEFT_UNROLL
  for (int i = 0; i < E; ++i)
    smem.partial[(warp() * E + static_cast<uint32_t>(i)) * kWarp + lane()] = found[i];
  sync_block();
  if (warp() != 0) return;
  Extremes all;
  for (uint32_t i = 0; i < E; ++i) {
    Extremes column;
    for (uint32_t w = 0; w < kExtremesWarps; ++w)
      column.add(Extremes(smem.partial[(w * E + i) * kWarp + lane()]));
    if (call.scales == 1)
      all.add(column);
    else if (c < p.C)
      store(call.found + row_block * call.scales + c + i, column);
  }
  if (call.scales > 1) return;
  all = warp_reduce(all, MergeExtremes{});
  if (lane() == 0) store(call.found + block().x, all);
}

WEFT_KERNEL_BOUNDS(kExtremesThreads, 1) void find_scales_kernel(const SharedScales call) {
  const int64_t i = static_cast<int64_t>(block().x) * kExtremesWarps + warp();
  if (i >= call.scales) return;
  Extremes all;
  for (int64_t part = lane(); part < call.parts; part += kWarp)
    all.add(load(call.found + part * call.scales + i));
  all = warp_reduce(all, MergeExtremes{});
  if (lane() != 0) return;
  const Scale s(all, call.p.symmetric);
  store(call.p.scale + i, s.scale);
  if (call.p.zero_point) store(call.p.zero_point + i, s.zero_point);
}

// ---- outliers

// The columns in which any |x| >= threshold, in ascending order, and how many: by one block, a column
// a thread. left_out says of every column whether it is one.
constexpr uint32_t kCollectThreads = 1024;
struct CollectShared {
  SharedLayout layout;
  Shared<int32_t> of_warp = layout.take<int32_t>(kWarp);
};

WEFT_KERNEL_BOUNDS(kCollectThreads, 1)
void collect_outliers_kernel(const SharedScales call, float threshold, uint8_t* left_out,
                             int32_t* columns, int32_t* count) {
  const CollectShared smem;
  int32_t before = 0;
  for (int64_t first = 0; first < call.scales; first += kCollectThreads) {
    const int64_t k = first + thread();
    Extremes all;
    for (int64_t part = 0; k < call.scales && part < call.parts; ++part)
      all.add(load(call.found + part * call.scales + k));
    const bool is_outlier = k < call.scales && !(all.magnitude < threshold);
    if (k < call.scales) store(left_out + k, static_cast<uint8_t>(is_outlier));
    int32_t rank = is_outlier;  // among those of the warp, from 1
    for (uint32_t by = 1; by < kWarp; by *= 2) {
      const int32_t lower = shuffle_up(rank, by);
      rank += lane() >= by ? lower : 0;
    }
    if (lane() == kWarp - 1) smem.of_warp[warp()] = rank;
    sync_block();
    int32_t at = before + rank - 1;
    for (uint32_t w = 0; w < kWarp; ++w) {
      const int32_t of_warp = smem.of_warp[w];
      at += w < warp() ? of_warp : 0;
      before += of_warp;
    }
    if (is_outlier) store(columns + at, static_cast<int32_t>(k));
    sync_block();
  }
  if (thread() == 0) store(count, before);
}

// ---- back

constexpr uint32_t kDequantizeThreads = 256;

template <class X, bool kVector>
WEFT_KERNEL_BOUNDS(kDequantizeThreads, 1)
void dequantize_kernel(WEFT_GRID_CONSTANT const Dequantize p) {
  constexpr int E = kVector ? kChunk<X> : 1;
  const int64_t in_row = p.C / E,
                i = static_cast<int64_t>(block().x) * kDequantizeThreads + thread(), n = i / in_row,
                c = i % in_row * E;
  if (n >= p.N) return;
  const Vec<int8_t, E> q = load<E>(reinterpret_cast<const int8_t*>(p.q.row(n)) + c);
  const bool one = p.grid.group % E == 0;  // scale for all
  Vec<float, E> x;
  float scale = 1;
  int32_t zero = 0;
  WEFT_UNROLL
  for (int e = 0; e < E; ++e) {
    if (e == 0 || !one) {
      const int64_t at = p.grid.at(n, c + e);
      scale = load(p.scale + at);
      zero = p.zero_point ? load(p.zero_point + at) : 0;
    }
    x[e] = static_cast<float>(q[e] - zero) * scale;
  }
  store(static_cast<X*>(p.x) + n * p.C + c, convert<X>(x));
}

}  // namespace weft::int8::cuda
