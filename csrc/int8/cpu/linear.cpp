// The linear layers on one ISA level (compiled once per level). Formulas: params.h.
//
// Plan, for M rows of x and a panel of 64 columns of the weight, which stays in L2:
//   prepare    rows of x become rows of A, once a call: int8 by the row's own scale, or, where the
//              weight alone is quantised, two or three digits of 8 bits, each a row of A. So one
//              kernel of integers serves both, and a weight of 8 or 4 bits is never widened to
//              floats: x is what is rounded, to 2^-15 or 2^-23 of the row's largest.
//   multiply   tiles of kByteTileRows rows of A × 64 columns, int32 sums in registers over a section
//              of the depth: all of it, a group of the weight's scales, or 65536, whose sums still
//              fit. Sections are added up in floats.
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
        const Scale s = p.x_scale ? Scale(*p.x_scale, p.x_zero_point ? *p.x_zero_point : 0)
                                  : Scale(extremes_of(t, p.K, p.symmetric), p.symmetric);
        quantize_span(t, p.K, s, a);
        o.scale[r] = s.scale;
        if (o.zero_point) o.zero_point[r] = s.zero_point;
      }
    }
    for (int64_t s = 0; s < o.sections; ++s) {
      const int64_t k = s * o.section, n = p.K - k < o.section ? p.K - k : o.section;
      float sum = 0;
      for (int d = 0; d < o.digits; ++d) {
        const int32_t digit = sum_bytes(a + d * o.lda + k, n);
        o.init[(r * o.digits + d) * o.sections + s] = static_cast<int32_t>(
            -static_cast<uint32_t>(packed_zero(p.bits)) * static_cast<uint32_t>(digit));
        sum = sum * 256 + static_cast<float>(digit);
      }
      if (o.sum) o.sum[r * o.sections + s] = sum;
    }
  }
}

// ---- multiply

constexpr int kMostRows = kByteTileRows;
constexpr int kPieces = kBytePanel / kFloats;  // vectors of a row of the tile

// A row of the panel's vectors from [N, groups], of which the first `columns` are there.
struct Columns {
  Vec<float> piece[kPieces];
};
Columns column_scales(const float* scales, int64_t groups, int64_t g, int64_t n, int64_t columns) {
  Columns all;
  if (groups == 1 && columns == kBytePanel) {
    for (int j = 0; j < kPieces; ++j) all.piece[j] = load_vec<float>(scales + n + j * kFloats);
    return all;
  }
  float lane[kBytePanel] = {};
  for (int64_t i = 0; i < columns; ++i) lane[i] = scales[(n + i) * groups + g];
  for (int j = 0; j < kPieces; ++j) all.piece[j] = load_vec<float>(lane + j * kFloats);
  return all;
}

// One tile's results in floats, and what has to happen to them.
class Tile {
 public:
  Tile(const Linear& p, const Operands& o, const PackedLayout& layout, int64_t panel, int64_t begin,
       int64_t rows)
      : p_(p),
        o_(o),
        panel_(layout.panel(p.packed, panel)),
        sums_(layout.sums(p.packed, panel)),
        n_(panel * kBytePanel),
        columns_(p.N - n_ < kBytePanel ? p.N - n_ : kBytePanel),
        begin_(begin),
        rows_(rows) {}

  void run() {
    const int64_t step = p_.bits == 8 ? 4 : 8, last = (p_.K + step - 1) / step;
    for (int64_t s = 0; s < o_.sections; ++s) {
      const int64_t first = s * o_.section / step;
      const int64_t steps = (s + 1 < o_.sections ? (s + 1) * o_.section / step : last) - first;
      const int64_t row = begin_ * o_.digits;
      const int8_t* a = o_.a + row * o_.lda + s * o_.section;
      const int32_t* init = o_.init + row * o_.sections + s;
      const uint8_t* b = panel_ + first * kByteStep;
      if (p_.bits == 8)
        byte_rows<false>(rows_ * o_.digits, steps, a, o_.lda, b, init, o_.sections, sum_);
      else
        byte_rows<true>(rows_ * o_.digits, steps, a, o_.lda, b, init, o_.sections, sum_);
      if (p_.out_dtype == DType::i32) return store_sums();
      add_section(s);
    }
    if (o_.outlier_count) add_outliers();
    finish();
  }

 private:
  Vec<int32_t> sums_without_zero(int64_t r, int j) const {
    const Vec<int32_t> sum = load_vec<int32_t>(sum_ + r * kBytePanel + j * kFloats);
    if (!o_.zero_point) return sum;
    return sum - load_vec<int32_t>(sums_ + j * kFloats) * o_.zero_point[begin_ + r];
  }

  void store_sums() const {
    for (int64_t r = 0; r < rows_; ++r) {
      int32_t lane[kBytePanel];
      for (int j = 0; j < kPieces; ++j)
        store_vec<int32_t>(lane + j * kFloats, sums_without_zero(r, j));
      std::memcpy(static_cast<int32_t*>(p_.out) + (o_.first_row + begin_ + r) * p_.N + n_, lane,
                  static_cast<size_t>(columns_) * 4);
    }
  }

  void add_section(int64_t s) {
    const int64_t groups = (p_.K + p_.group - 1) / p_.group, g = s * o_.section / p_.group;
    const Columns scale = column_scales(p_.weight_scale, groups, g, n_, columns_);
    Columns zero;
    if (p_.weight_zero_point) zero = column_scales(p_.weight_zero_point, groups, g, n_, columns_);
    for (int64_t r = 0; r < rows_; ++r)
      for (int j = 0; j < kPieces; ++j) {
        Vec<float> v;
        if (o_.digits == 1 && o_.sections == 1) {
          v = __builtin_convertvector(sums_without_zero(r, j), Vec<float>);
        } else {
          v = Vec<float>{};
          for (int d = 0; d < o_.digits; ++d)
            v = v * 256.0f +
                __builtin_convertvector(
                    load_vec<int32_t>(sum_ + (r * o_.digits + d) * kBytePanel + j * kFloats),
                    Vec<float>);
        }
        if (p_.weight_zero_point) v -= zero.piece[j] * o_.sum[(begin_ + r) * o_.sections + s];
        v *= scale.piece[j];
        result_[r][j] = s == 0 ? v : result_[r][j] + v;
      }
  }

  // x[m, k] · w[n, k] for the columns k that A leaves out, in x's dtype and floats.
  void add_outliers() {
    const Columns scale = column_scales(p_.weight_scale, 1, 0, n_, columns_);
    for (int64_t r = 0; r < rows_; ++r)
      for (int j = 0; j < kPieces; ++j) result_[r][j] *= o_.scale[begin_ + r];
    with_float(p_.x.dtype, [&](auto type) {
      using T = decltype(type);
      for (int64_t i = 0; i < o_.outlier_count; ++i) {
        const int64_t k = o_.outliers[i];
        const uint8_t* step = panel_ + k / 4 * kByteStep;
        const int shift = static_cast<int>(k % 4) * 8;
        for (int j = 0; j < kPieces; ++j) {
          const Vec<int32_t> four = load_vec<int32_t>(step + j * kVecBytes);
          const Vec<float> w =
              __builtin_convertvector((four >> shift & 255) - 128, Vec<float>) * scale.piece[j];
          for (int64_t r = 0; r < rows_; ++r) {
            const T* x = reinterpret_cast<const T*>(p_.x.row(o_.first_row + begin_ + r));
            result_[r][j] = multiply_add(w, broadcast<float>(widen(x[k])), result_[r][j]);
          }
        }
      }
    });
  }

  void finish() {
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t m = o_.first_row + begin_ + r;
      const Vec<float> scale = broadcast(o_.outlier_count ? 1.0f : o_.scale[begin_ + r]);
      for (int j = 0; j < kPieces; ++j) {
        Vec<float>& v = result_[r][j];
        v *= scale;
        // Sections of more than one leave the zero point to the end.
        if (o_.zero_point && o_.sections > 1)
          v -= __builtin_convertvector(load_vec<int32_t>(sums_ + j * kFloats), Vec<float>) *
               (static_cast<float>(o_.zero_point[begin_ + r]) * scale) *
               column_scales(p_.weight_scale, 1, 0, n_, columns_).piece[j];
        if (o_.bias) v += load_vec<float>(o_.bias + n_ + j * kFloats);
        if (p_.activation != Activation::none) v = activate(p_.activation, v);
      }
      if (p_.residual) add_residual(m, result_[r]);
      store(m, result_[r]);
    }
  }

  void add_residual(int64_t m, Vec<float>* v) const {
    with_float(p_.residual.dtype, [&](auto type) {
      using T = decltype(type);
      const T* from = reinterpret_cast<const T*>(p_.residual.row(m)) + n_;
      for (int j = 0; j * kFloats < columns_; ++j)
        v[j] += load_some(from + j * kFloats, columns_ - j * kFloats);
    });
  }

  void store(int64_t m, const Vec<float>* v) const {
    const int64_t at = m * p_.N + n_;
    if (p_.out_dtype == DType::i8) {
      float lane[kBytePanel];
      for (int j = 0; j < kPieces; ++j) store_vec<float>(lane + j * kFloats, v[j]);
      return quantize_span(lane, columns_, {*p_.out_scale, p_.out_zero_point},
                           static_cast<int8_t*>(p_.out) + at);
    }
    with_float(p_.out_dtype, [&](auto type) {
      using T = decltype(type);
      for (int j = 0; j * kFloats < columns_; ++j)
        store_some(static_cast<T*>(p_.out) + at + j * kFloats, v[j], columns_ - j * kFloats);
    });
  }

  const Linear& p_;
  const Operands& o_;
  const uint8_t* panel_;
  const int32_t* sums_;
  const int64_t n_, columns_, begin_, rows_;
  alignas(64) int32_t sum_[kMostRows * kBytePanel];
  Vec<float> result_[kMostRows][kPieces];
};

void multiply(const Linear& p, const Operands& o, int64_t begin, int64_t end, int64_t panel_begin,
              int64_t panel_end) {
  const PackedLayout layout(p.N, p.K, p.bits);
  const int64_t most = kMostRows / o.digits, tiles = (end - begin + most - 1) / most;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel)
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = begin + (end - begin) * i / tiles,
                    last = begin + (end - begin) * (i + 1) / tiles;
      Tile(p, o, layout, panel, first, last - first).run();
    }
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {widen_all, find_outliers, prepare, multiply};

}  // namespace weft::int8::cpu::WEFT_CPU_LEVEL
