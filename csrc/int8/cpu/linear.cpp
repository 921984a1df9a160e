// The linear layers on one ISA level (compiled once per level). Formulas: params.h.
//
// Plan, for M rows of x and a panel of 64 columns of the weight, which stays in L2:
//   prepare    rows of x become rows of A, once a call: int8 by the row's own scale, or, where the
//              weight alone is quantised, two or three digits of 8 bits, each a row of A. So one
//              kernel of integers serves both, and a weight of 8 or 4 bits is never widened to
//              floats: x is what is rounded, to 2^-15 or 2^-23 of the row's largest.
//   multiply   tiles of kByteTileRows rows of A × 64 columns, int32 sums in registers over a section
//              of the depth: all of it, a group of the weight's scales, or 65536, whose sums still
//              fit. Sections are added up in floats; where x is int8, in int64.
//   finish     digits to one float, zero points, scales, outliers, bias, activation, residual, and
//              the store: the tile is in L1.
//
// Cost of M×N×K: 2 M N K operations (times 2 or 3 of digits), 64 a cycle and unit with VNNI; bytes:
// the weight once, A once a panel from L2 or L3. Bound by the weight's bytes up to some 16 rows, by
// multiplications beyond.
#include "int8/cpu/row.h"

namespace weft::int8::cpu::WEFT_CPU_LEVEL {
namespace {

// ---- prepare

// What the largest |x| of a row becomes. Digits -128 … 127 hold 127 in each, of which three are taken
// a little less: a product of floats may be a last place too large.
constexpr float kMostDigits[] = {127, 127 * 257, 127 * 65793 - 4};

void find_outliers(const Linear& p, int64_t begin, int64_t end, uint8_t* flags) {
  for (int64_t k = begin; k < end; ++k) flags[k] = 0;
  const Vec<float> threshold = broadcast(p.threshold);
  with_float(p.x.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t m = 0; m < p.M; ++m) {
      const T* x = reinterpret_cast<const T*>(p.x.row(m));
      for (int64_t k = begin; k < end; k += kFloats) {
        const Vec<float> v = load_some(x + k, end - k);
        const Vec<int32_t> below = (v < 0 ? -v : v) < threshold;  // not so for NaN
        Vec<int32_t> all = below;
        if (reduce<int32_t>(all, [](auto a, auto b) { return a & b; })) continue;
        for (int64_t i = 0; i < kFloats && k + i < end; ++i) flags[k + i] |= below[i] ? 0 : 1;
      }
    }
  });
}

void widen_all(const void* from, DType dtype, int64_t count, float* to) {
  with_float(dtype, [&](auto type) {
    const auto* p = static_cast<const decltype(type)*>(from);
    for (int64_t i = 0; i < count; ++i) to[i] = widen(p[i]);
  });
}

// The digits of K integers, most significant first, in rows of A.
void store_digits(const float* t, int64_t K, float scale, int digits, int8_t* a, int64_t lda) {
  const Vec<float> factor = broadcast(scale);
  for_vectors(K, [=](int64_t k, auto count) {
    Vec<int32_t> x = round_to_int(load_vec<float>(t + k) * factor);
    for (int d = digits - 1; d >= 0; --d) {
      const Vec<int32_t> digit = (x << 24) >> 24;
      store_bytes(a + d * lda + k, digit, count);
      x = (x - digit) >> 8;
    }
  });
}

void prepare(const Linear& p, const Operands& o, int64_t begin, int64_t end, float* t) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t m = o.first_row + r;
    int8_t* a = o.a + r * o.digits * o.lda;
    for (int d = 0; d < o.digits; ++d)
      std::memset(a + d * o.lda + p.K, 0, static_cast<size_t>(o.lda - p.K));
    if (p.x.dtype == DType::i8) {
      std::memcpy(a, p.x.row(m), static_cast<size_t>(p.K));
      o.scale[r] = p.x_scale[m * p.x_scale_row];
      if (o.zero_point) o.zero_point[r] = p.x_zero_point[m * p.x_scale_row];
    } else {
      transform_row(p.x, m, p.K, Activation::none, p.smoothing, t);
      for (int64_t i = 0; i < o.outlier_count; ++i) t[o.outliers[i]] = 0;
      if (p.operand == Operand::wide) {
        const float most = extremes_of(t, p.K, true).magnitude;
        const float range = kMostDigits[o.digits - 1];
        const bool lost = !(most <= 3.40282347e+38f), small = most < range * 1.17549435e-38f;
        // x below all normal scales is rounded to 0; what holds no number gives NaN by its scale.
        store_digits(t, p.K, lost || small ? 0 : range / most, o.digits, a, o.lda);
        o.scale[r] = lost ? most - most : most / range;
        if (lost)
          for (int d = 0; d < o.digits; ++d)
            std::memset(a + d * o.lda, 0, static_cast<size_t>(p.K));
      } else {
        const Extremes found = extremes_of(t, p.K, p.symmetric);
        const Scale s = p.x_scale ? Scale(*p.x_scale, p.x_zero_point ? *p.x_zero_point : 0)
                                  : Scale(found, p.symmetric);
        quantize_span(t, p.K, s, a);
        // 0 · magnitude: NaN, also by a given scale, where the row holds NaN or infinity.
        o.scale[r] = s.scale + 0 * found.magnitude;
        if (o.zero_point) o.zero_point[r] = s.zero_point;
      }
    }
    for (int64_t s = 0; s < o.sections; ++s) {
      const int64_t k = s * o.section, n = p.K - k < o.section ? p.K - k : o.section;
      for (int d = 0; d < o.digits; ++d)
        o.init[(r * o.digits + d) * o.sections + s] =
            -packed_zero(p.bits) * sum_bytes(a + d * o.lda + k, n);
    }
  }
}

// ---- multiply

constexpr int kMostRows = kByteTileRows;
constexpr int kPieces = kBytePanel / kFloats;  // vectors of a row of the tile

// A row of the panel's vectors from [N, groups] by strides, of which the first `columns` are there.
struct Columns {
  Vec<float> piece[kPieces];
};
[[gnu::noinline]] void gather_columns(const float* from, int64_t stride, int64_t columns,
                                      float* to) {
  for (int64_t i = 0; i < kBytePanel; ++i) to[i] = i < columns ? from[i * stride] : 0;
}
WEFT_INLINE Columns of_columns(const GroupValues& v, int64_t g, int64_t n, int64_t columns) {
  const float* from = v.data + n * v.column + g * v.group;
  float lane[kBytePanel];
  if (v.column != 1 || columns < kBytePanel) {
    gather_columns(from, v.column, columns, lane);
    from = lane;
  }
  Columns all;
  for (int j = 0; j < kPieces; ++j) all.piece[j] = load_vec<float>(from + j * kFloats);
  return all;
}

inline Vec<float> to_float(Vec<int32_t> v) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(v));
#else
  return __builtin_convertvector(v, Vec<float>);
#endif
}

// A row of a tile.
using Row = Vec<float>[kPieces];

// One tile: its sums, what they come to in floats, and what has to happen to that.
class Tile {
 public:
  Tile(const Linear& p, const Operands& o, const PackedLayout& layout, int64_t panel)
      : p_(p),
        o_(o),
        panel_(layout.panel(p.packed, panel)),
        sums_(layout.sums(p.packed, panel)),
        n_(panel * kBytePanel),
        columns_(p.N - n_ < kBytePanel ? p.N - n_ : kBytePanel),
        scale_(of_columns(p.weight_scale, 0, n_, columns_)) {}

  // Rows [begin, begin + rows) of A, counted from first_row.
  void run(int64_t begin, int64_t rows, Ahead ahead) {
    begin_ = begin;
    rows_ = rows;
    fetch_results();
    if (o_.sections == 1) {
      multiply(ahead);
      if (p_.out_dtype == DType::i32) return store_sums();
      for (int64_t r = 0; r < rows_; ++r) {
        Row v;
        scaled_row(r, v);
        finish(r, v);
      }
    } else if (p_.operand != Operand::wide) {
      long_sums(ahead);
      for (int64_t r = 0; r < rows_; ++r) {
        Row v;
        scaled_long_row(r, v);
        finish(r, v);
      }
    } else {
      p_.bits == 8 ? sections<false>(ahead) : sections<true>(ahead);
      for (int64_t r = 0; r < rows_; ++r) {
        Row v;
        for (int j = 0; j < kPieces; ++j) v[j] = total_[r * o_.digits][j];
        add_digits(r, v, [&](int64_t i, int j) { return total_[i][j]; });
        finish(r, v);
      }
    }
  }

 private:
  // Where row m of the tile begins in the result.
  int64_t at(int64_t m) const { return m * p_.out_row + n_ - p_.column; }

  // The result's lines, to be written when the products are there: rows lie far apart, and the wait
  // for them would be a tenth of the time.
  void fetch_results() const {
    const int64_t size = static_cast<int64_t>(size_of(p_.out_dtype));
    for (int64_t r = 0; r < rows_; ++r) {
      const char* row = static_cast<const char*>(p_.out) + at(o_.first_row + begin_ + r) * size;
      for (int64_t i = 0; i < columns_ * size; i += 64) __builtin_prefetch(row + i, 1);
    }
  }

  // The sums over the whole depth.
  void multiply(Ahead ahead) {
    const int64_t step = p_.bits == 8 ? 4 : 8, row = begin_ * o_.digits;
    const auto multiply_rows = p_.bits == 8 ? byte_rows<false> : byte_rows<true>;
    multiply_rows(rows_ * o_.digits, ceil_div(p_.K, step), o_.a + row * o_.lda, o_.lda, panel_,
                  o_.init + row, 1, sum_, ahead);
  }

  // The sums over the whole depth, of which int32 holds a section's.
  void long_sums(Ahead ahead) {
    std::memset(long_, 0, static_cast<size_t>(rows_ * kBytePanel) * sizeof *long_);
    for (int64_t s = 0; s < o_.sections; ++s) {
      const int64_t k = s * o_.section, n = p_.K - k < o_.section ? p_.K - k : o_.section;
      byte_rows<false>(rows_, ceil_div(n, 4), o_.a + begin_ * o_.lda + k, o_.lda,
                       panel_ + k / 4 * kByteStep, o_.init + begin_ * o_.sections + s, o_.sections,
                       sum_, s == 0 ? ahead : Ahead{});
      for (int64_t i = 0; i < rows_ * kBytePanel; ++i) long_[i] += sum_[i];
    }
  }

  // All sections of the tile's rows of A: total_ = Σ_s scale[s] · (sums of s - zero point · Σ A of s).
  // Sections are short: their sums never leave the registers.
  template <bool kNibbles, int kRows = kMostRows>
  void sections(Ahead ahead) {
    if constexpr (kRows > 1)
      if (rows_ * o_.digits < kRows) return sections<kNibbles, kRows - 1>(ahead);
    constexpr int64_t step = kNibbles ? 8 : 4;
    const int8_t* a = o_.a + begin_ * o_.digits * o_.lda;
    const int32_t* init = o_.init + begin_ * o_.digits * o_.sections;
    Row total[kRows] = {};
    for (int64_t s = 0; s < o_.sections; ++s) {
      const int64_t k = s * o_.section, end = s + 1 < o_.sections ? k + o_.section : p_.K;
      const int64_t steps = ceil_div(end, step) - k / step;
      const int64_t g = k / p_.group;
      fetch_values(p_.weight_scale, g);
      fetch_values(p_.weight_zero_point, g);
      const Columns scale = of_columns(p_.weight_scale, g, n_, columns_);
      Columns zero;
      if (p_.weight_zero_point) zero = of_columns(p_.weight_zero_point, g, n_, columns_);
      for (int n = 0; n < kBytePanel; n += kByteColumns) {
        ByteSums<kRows> sum;
        start_byte_sums<kRows>(init + s, o_.sections, sum);
        add_byte_products<kNibbles, kRows>(
            steps, a + k, o_.lda, panel_ + n * 4 + k / step * kByteStep, n ? Ahead{} : ahead, sum);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          Vec<float> x[kByteVectors];
#pragma GCC unroll 4
          for (int j = 0; j < kByteVectors; ++j) x[j] = to_float(sum[i][j]);
          if (p_.weight_zero_point) {
            const Vec<float> digits = broadcast(-digit_sum(init[i * o_.sections + s]));
#pragma GCC unroll 4
            for (int j = 0; j < kByteVectors; ++j)
              x[j] = multiply_add(zero.piece[n / kFloats + j], digits, x[j]);
          }
#pragma GCC unroll 4
          for (int j = 0; j < kByteVectors; ++j) {
            Vec<float>& to = total[i][n / kFloats + j];
            to = multiply_add(x[j], scale.piece[n / kFloats + j], to);
          }
        }
      }
      ahead.next += ahead.lines * 64 * steps;
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kPieces; ++j) total_[i][j] = total[i][j];
  }

  // Σ A of a section, of what its sums begin with.
  float digit_sum(int32_t init) const { return static_cast<float>(init / -packed_zero(p_.bits)); }

  // A group's values are a few lines, far from those of the next: on their way some groups early.
  void fetch_values(const GroupValues& values, int64_t g) const {
    constexpr int64_t kEarly = 4;
    if (!values || values.column != 1 || columns_ < kBytePanel || (g + kEarly) * p_.group >= p_.K)
      return;
    const float* from = values.data + n_ + (g + kEarly) * values.group;
    for (int n = 0; n < kBytePanel; n += 16) __builtin_prefetch(from + n);
  }

  Vec<int32_t> sums(int64_t r, int j) const {
    return load_vec<int32_t>(sum_ + r * kBytePanel + j * kFloats);
  }
  // Zero points of x are taken from the sums themselves, exactly.
  Vec<int32_t> sums_without_zero(int64_t r, int j) const {
    if (!o_.zero_point) return sums(r, j);
    return sums(r, j) - load_vec<int32_t>(sums_ + j * kFloats) * o_.zero_point[begin_ + r];
  }

  void store_sums() const {
    for (int64_t r = 0; r < rows_; ++r) {
      int32_t lane[kBytePanel];
      for (int j = 0; j < kPieces; ++j)
        store_vec<int32_t>(lane + j * kFloats, sums_without_zero(r, j));
      std::memcpy(static_cast<int32_t*>(p_.out) + at(o_.first_row + begin_ + r), lane,
                  static_cast<size_t>(columns_) * 4);
    }
  }

  // A row whose sums run over the whole depth, by the weight's scales.
  void scaled_row(int64_t r, Row& v) const {
    for (int j = 0; j < kPieces; ++j)
      v[j] = to_float(o_.digits > 1 ? sums(r * o_.digits, j) : sums_without_zero(r, j));
    add_digits(r, v, [&](int64_t i, int j) { return to_float(sums(i, j)); });
    if (p_.weight_zero_point) {
      const Columns zero = of_columns(p_.weight_zero_point, 0, n_, columns_);
      float sum = 0;
      for (int d = 0; d < o_.digits; ++d)
        sum = sum * 256 + digit_sum(o_.init[(begin_ + r) * o_.digits + d]);
      for (int j = 0; j < kPieces; ++j) v[j] -= zero.piece[j] * sum;
    }
    for (int j = 0; j < kPieces; ++j) v[j] *= scale_.piece[j];
  }

  // What the lower digits of x add to the first one's: of(row of A, piece).
  template <class F>
  void add_digits(int64_t r, Row& v, F&& of) const {
    for (int d = 1; d < o_.digits; ++d)
      for (int j = 0; j < kPieces; ++j)
        v[j] = multiply_add(v[j], broadcast(256.0f), of(r * o_.digits + d, j));
  }

  // The same of sums in int64: zero points are taken from them exactly, too.
  void scaled_long_row(int64_t r, Row& v) const {
    const int64_t zero = o_.zero_point ? o_.zero_point[begin_ + r] : 0;
    float lane[kBytePanel];
    for (int64_t i = 0; i < kBytePanel; ++i)
      lane[i] = static_cast<float>(long_[r * kBytePanel + i] - zero * sums_[i]);
    for (int j = 0; j < kPieces; ++j) v[j] = load_vec<float>(lane + j * kFloats) * scale_.piece[j];
  }

  void finish(int64_t r, Row& v) const {
    const Vec<float> scale = broadcast(o_.scale[begin_ + r]);
    for (int j = 0; j < kPieces; ++j) v[j] *= scale;
    const int64_t m = o_.first_row + begin_ + r;
    if (o_.outlier_count) add_outliers(m, v);
    if (o_.bias)
      for (int j = 0; j < kPieces; ++j) v[j] += load_vec<float>(o_.bias + n_ + j * kFloats);
    if (p_.activation != Activation::none)
      for (int j = 0; j < kPieces; ++j) v[j] = activate(p_.activation, v[j]);
    if (p_.residual) add_residual(m, v);
    store(m, v);
  }

  // x[m, k] · w[n, k] for the columns k that A leaves out, in floats.
  void add_outliers(int64_t m, Row& v) const {
    with_float(p_.x.dtype, [&](auto type) {
      const auto* x = reinterpret_cast<const decltype(type)*>(p_.x.row(m));
      for (int64_t i = 0; i < o_.outlier_count; ++i) {
        const int64_t k = o_.outliers[i];
        const Vec<float> factor = broadcast<float>(widen(x[k]));
        const uint8_t* step = panel_ + k / 4 * kByteStep;
        const int shift = static_cast<int>(k % 4) * 8;
        for (int j = 0; j < kPieces; ++j) {
          const Vec<int32_t> four = load_vec<int32_t>(step + j * kVecBytes);
          const Vec<float> w = to_float((four >> shift & 255) - 128) * scale_.piece[j];
          v[j] = multiply_add(w, factor, v[j]);
        }
      }
    });
  }

  void add_residual(int64_t m, Row& v) const {
    with_float(p_.residual.dtype, [&](auto type) {
      const auto* from = reinterpret_cast<const decltype(type)*>(p_.residual.row(m)) + n_;
      for_pieces([&](int j, auto count) { v[j] += load_some(from + j * kFloats, count); });
    });
  }

  void store(int64_t m, const Row& v) const {
    const int64_t to_row = at(m);
    if (p_.out_dtype == DType::i8) {
      float lane[kBytePanel];
      for (int j = 0; j < kPieces; ++j) store_vec<float>(lane + j * kFloats, v[j]);
      return quantize_span(lane, columns_, {*p_.out_scale, p_.out_zero_point},
                           static_cast<int8_t*>(p_.out) + to_row);
    }
    with_float(p_.out_dtype, [&](auto type) {
      auto* to = static_cast<decltype(type)*>(p_.out) + to_row;
      for_pieces([&](int j, auto count) { store_some(to + j * kFloats, v[j], count); });
    });
  }

  // f(j, count) for the vectors of a row that are there.
  template <class F>
  void for_pieces(F&& f) const {
    if (columns_ == kBytePanel) {
#pragma GCC unroll 4
      for (int j = 0; j < kPieces; ++j) f(j, std::integral_constant<int64_t, kFloats>{});
    } else {
      for (int j = 0; j * kFloats < columns_; ++j) f(j, columns_ - j * kFloats);
    }
  }

  const Linear& p_;
  const Operands& o_;
  const uint8_t* panel_;
  const int32_t* sums_;
  const int64_t n_, columns_;
  const Columns scale_;  // of the first group
  int64_t begin_ = 0, rows_ = 0;
  alignas(64) int32_t sum_[kMostRows * kBytePanel];
  alignas(64) Row total_[kMostRows];
  alignas(64) int64_t long_[kMostRows * kBytePanel];
};

// What tile i of the last few fetches of the next panel: a step's bytes are 4 lines. A panel that is
// used once needs no help, the CPU's own prefetcher follows it.
Ahead share_of(const uint8_t* next, int64_t panel_bytes, int64_t i, int64_t tiles) {
  if (tiles < 2) return {};
  const int64_t lines = tiles >= 4 ? 1 : 2, from = i - (tiles - 4 / lines);
  if (from < 0) return {};
  return {next + from * lines * (panel_bytes / 4), static_cast<int>(lines)};
}

void multiply(const Linear& p, const Operands& o, int64_t begin, int64_t end, int64_t panel_begin,
              int64_t panel_end) {
  const PackedLayout layout(p.N, p.K, p.bits);
  const int64_t most = kMostRows / o.digits, tiles = ceil_div(end - begin, most);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const uint8_t* next = panel + 1 < panel_end ? layout.panel(p.packed, panel + 1) : nullptr;
    Tile tile(p, o, layout, panel);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = begin + (end - begin) * i / tiles,
                    last = begin + (end - begin) * (i + 1) / tiles;
      tile.run(first, last - first, next ? share_of(next, layout.panel_bytes, i, tiles) : Ahead{});
    }
  }
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {widen_all, find_outliers, prepare, multiply};

}  // namespace weft::int8::cpu::WEFT_CPU_LEVEL
