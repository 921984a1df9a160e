// Quantisation to int8 and back, on one ISA level (compiled once per level). Formulas: params.h.
//
// Plan, for a row of C channels:
//   transform   x once, t kept in floats in the task's scratch, in L1 or L2
//   extremes    of t, where the row finds its own scales; scales that rows share (of a tensor, of
//               channels) are found in a sweep of their own, whose extremes the plan merges
//   round       t · (1 / scale) to the nearest, saturated, written once; where the result is transposed,
//               64 rows to the task's scratch, then as whole lines of 64 channels each
//
// Cost per element of bfloat16: 2 bytes read, 1 written, about 25 vector operations per 32 elements.
// Bound by memory beyond L2.
#include "int8/cpu/row.h"
#include "int8/cpu/transpose.h"

namespace weft::int8::cpu::WEFT_CPU_LEVEL {
namespace {

bool by_channel(const ScaleGrid& grid) { return grid.row == 0 && grid.group == 1; }

// A row with a scale for each channel.
void quantize_channels(const Quantize& p, const float* t, int8_t* q) {
  for (int64_t c = 0; c < p.C; c += kFloats) {
    const int64_t n = p.C - c;
    float inverse[kFloats] = {}, zero[kFloats] = {};
    for (int64_t i = 0; i < n && i < kFloats; ++i) {
      const Scale s(p.scale[c + i], p.zero_point ? p.zero_point[c + i] : 0);
      inverse[i] = s.lost() ? 0 : 1 / s.scale;
      zero[i] = static_cast<float>(s.zero_point);
    }
    const Vec<float> zeros = load_vec<float>(zero);
    Vec<float> v = load_vec<float>(t + c) * load_vec<float>(inverse);
    v = v == v ? v : Vec<float>{};
    v = vmin(vmax(v, -128.0f - zeros), 127.0f - zeros);
    store_bytes(q + c, round_to_int(v) + round_to_int(zeros), n);
  }
}

void quantize_row(const Quantize& p, int64_t n, const float* t, int8_t* q) {
  if (by_channel(p.grid)) return quantize_channels(p, t, q);
  const bool own = p.dynamic && p.grid.row > 0;
  for (int64_t c = 0; c < p.C; c += p.grid.group) {
    const int64_t i = p.grid.at(n, c), count = p.C - c < p.grid.group ? p.C - c : p.grid.group;
    if (own) {
      const Scale s(extremes_of(t + c, count, p.symmetric), p.symmetric);
      p.scale[i] = s.scale;
      if (p.zero_point) p.zero_point[i] = s.zero_point;
    }
    quantize_span(t + c, count, {p.scale[i], p.zero_point ? p.zero_point[i] : 0}, q + c);
  }
}

void rows(const Quantize& p, int64_t begin, int64_t end, float* t) {
  int8_t* const waiting = reinterpret_cast<int8_t*>(t + row_floats(p.C));
  const int64_t pitch = row_floats(p.C);
  for (int64_t n = begin, first = begin; n < end; ++n) {
    transform_row(p.x, n, p.C, p.activation, p.smoothing, t);
    quantize_row(p, n, t, p.transposed ? waiting + (n - first) * pitch : p.q + n * p.C);
    const int64_t count = n + 1 - first;
    if (p.transposed && (count == kWaitingRows || n + 1 == end)) {
      transpose(waiting, pitch, count, p.C, p.q + first, p.N);
      first = n + 1;
    }
  }
}

void extremes(const Quantize& p, int64_t begin, int64_t end, float* t, Extremes* found) {
  for (int64_t n = begin; n < end; ++n) {
    transform_row(p.x, n, p.C, p.activation, p.smoothing, t);
    if (by_channel(p.grid)) {
      for (int64_t c = 0; c < p.C; ++c) {
        const float magnitude = t[c] < 0 ? -t[c] : t[c];
        found[c].add({t[c], t[c], magnitude});
      }
    } else {
      found->add(extremes_of(t, p.C, p.symmetric));
    }
  }
}

void dequantize(const Dequantize& p, int64_t begin, int64_t end) {
  with_float(p.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t n = begin; n < end; ++n) {
      const int8_t* q = reinterpret_cast<const int8_t*>(p.q.row(n));
      T* x = static_cast<T*>(p.x) + n * p.C;
      for (int64_t c = 0; c < p.C; c += kFloats) {
        float scale[kFloats] = {}, zero[kFloats] = {};
        for (int64_t i = 0; i < p.C - c && i < kFloats; ++i) {
          const int64_t at = p.grid.at(n, c + i);
          scale[i] = p.scale[at];
          zero[i] = p.zero_point ? static_cast<float>(p.zero_point[at]) : 0;
        }
        const Vec<float> v = load_some(q + c, p.C - c) - load_vec<float>(zero);
        store_some(x + c, v * load_vec<float>(scale), p.C - c);
      }
    }
  });
}

}  // namespace

extern const QuantizeKernels quantize_kernels;
const QuantizeKernels quantize_kernels = {rows, extremes, dequantize};

}  // namespace weft::int8::cpu::WEFT_CPU_LEVEL
