// Attention element by element, in double precision: what forward and backward have in common.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention/params.h"

namespace weft::attention::cpu::plain {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline double of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa ? std::nan("") : kInfinity)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(mantissa + 1024, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

inline double read(const void* data, DType dtype) {
  double f64;
  float f32;
  uint16_t bits;
  switch (dtype) {
    case DType::f64:
      std::memcpy(&f64, data, 8);
      return f64;
    case DType::f32:
      std::memcpy(&f32, data, 4);
      return f32;
    case DType::i8:
      return *static_cast<const int8_t*>(data);
    default:
      break;
  }
  std::memcpy(&bits, data, 2);
  if (dtype == DType::f16) return of_half(bits);
  const uint32_t wide = uint32_t{bits} << 16;
  std::memcpy(&f32, &wide, 4);
  return f32;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (value != value) return 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign + ((exponent + 14) << 10) + units);
}

inline void write(void* data, DType dtype, double value) {
  const float f32 = static_cast<float>(value);
  uint16_t bits = 0;
  switch (dtype) {
    case DType::f64:
      std::memcpy(data, &value, 8);
      return;
    case DType::f32:
      std::memcpy(data, &f32, 4);
      return;
    case DType::i8:
      *static_cast<int8_t*>(data) =
          static_cast<int8_t>(std::fmin(std::fmax(std::nearbyint(value), -128), 127));
      return;
    default:
      bits = dtype == DType::f16 ? to_half(f32) : to_bf16(f32);
      std::memcpy(data, &bits, 2);
  }
}

inline double element(const Heads& x, const char* row, int64_t d) {
  return read(row + d * static_cast<int64_t>(size_of(x.dtype)), x.dtype);
}
inline void set_element(const Heads& x, char* row, int64_t d, double value) {
  write(row + d * static_cast<int64_t>(size_of(x.dtype)), x.dtype, value);
}

// 1 / (1 - p) where dropout keeps element e, else 0.
inline double kept(const Dropout& dropout, int64_t e) {
  if (dropout.p == 0) return 1;
  const uint64_t i = static_cast<uint64_t>(e) / 4;
  uint32_t c[4] = {static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32),
                   static_cast<uint32_t>(dropout.key.offset),
                   static_cast<uint32_t>(dropout.key.offset >> 32)};
  uint32_t k0 = static_cast<uint32_t>(dropout.key.seed),
           k1 = static_cast<uint32_t>(dropout.key.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1)
    philox_round(c[0], c[1], c[2], c[3], k0, k1);
  return c[e % 4] >= dropout_threshold(dropout.p) ? 1 / (1 - dropout.p) : 0;
}

// One query of one head against the keys of its sequence.
struct Query {
  const Problem& p;
  const Heads &q, &k;
  const Vectors& k_scale;
  int64_t b, h, s;
  Problem::Extent e = p.extent(b);

  int64_t key_head() const { return h / (p.H / p.K); }
  const char* row() const { return q.at(e.q_batch, e.q_row + s, h); }
  int64_t lse_index() const {
    return p.sequences.cu_q ? h * p.total_q + e.q_row + s : (b * p.H + h) * p.S + s;
  }
  double keep(int64_t t) const { return kept(p.dropout, ((b * p.H + h) * p.S + s) * p.T + t); }

  struct Key {
    int64_t batch, row;
  };
  Key key(int64_t t) const {
    const Sequences& all = p.sequences;
    const int64_t row = e.k_row + t;
    if (!all.block_table) return {e.k_batch, row};
    return {all.block_table[b * all.table_stride + row / all.page_size], row % all.page_size};
  }
  double value(const Heads& x, const Vectors& scale, int64_t t, int64_t d) const {
    const Key at = key(t);
    return element(x, x.at(at.batch, at.row, key_head()), d) *
           (scale ? scale.at(at.batch, at.row, key_head()) : 1);
  }

  // The score before bias, with softcap, and its derivative by the product.
  double product(int64_t t, double* derivative = nullptr) const {
    double sum = 0;
    for (int64_t d = 0; d < p.D; ++d) sum += element(q, row(), d) * value(k, k_scale, t, d);
    sum *= p.softmax_scale;
    const double bent = p.softcap > 0 ? std::tanh(sum / p.softcap) : 0;
    if (derivative) *derivative = 1 - bent * bent;
    return p.softcap > 0 ? p.softcap * bent : sum;
  }

  double score(int64_t t, double* derivative = nullptr) const {
    const int64_t centre = s + (p.top_left ? 0 : e.T - e.S);
    if ((p.window_left >= 0 && t < centre - p.window_left) ||
        (p.window_right >= 0 && t > centre + p.window_right))
      return -kInfinity;
    if (p.mask && !*p.mask.at(b, h, s, t)) return -kInfinity;
    double sum = product(t, derivative);
    if (p.bias) sum += read(p.bias.at(b, h, s, t), p.bias.dtype);
    if (p.alibi) sum -= p.alibi.at(b, 0, h) * std::fabs(static_cast<double>(t - centre));
    return sum;
  }
};

}  // namespace weft::attention::cpu::plain
