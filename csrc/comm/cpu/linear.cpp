// One panel of a product of floats (compiled once per level):
//
//   y[m, n] = round(Σ_k x[m, k] · W[n, k] + bias[n]),  n of the panel's columns, sums in fp32
//
// Plan. A section of the panel's weight is packed (cpu/panel.h), where it stays in L2; tiles of
// kTileRows rows of x, as they lie, are multiplied by it, sums in registers. What is deeper than a
// section keeps its sums in between. In float they are sums of runs, whose rounding errors are as
// small as those of torch's products; beside bf16's own rounding they are nothing.
//
// Cost of M×N×K: 2 M N K operations, and the weight read and packed once for kTaskRows rows. Bound by
// multiplications from some 64 rows on, by the weight's bytes below.
#include "comm/cpu/linear.h"

#include "cpu/panel.h"

namespace weft::comm::cpu::WEFT_CPU_LEVEL {

using namespace ::weft::cpu::WEFT_CPU_LEVEL;

namespace {

constexpr int kLane = kLanes<float>;

template <class In>
inline void store_two(In* to, Vec<float> a, Vec<float> b) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<In, bf16>) return store_vec<uint32_t>(to, to_bf16(a, b));
#endif
  store_lanes<float>(to, a);
  store_lanes<float>(to + kLane, b);
}

template <class In>
class PanelProduct {
  using P = Panel<In>;
  // Of the depth: what is packed, and what is added up at once.
  static constexpr int64_t kSection = kPackedBytes / (kMostColumns * sizeof(In));
  static constexpr int64_t kRun = std::is_same_v<In, bf16> ? kSection : 256;
  static_assert(P::kPanel <= kMostColumns && P::kPanel % (2 * kLane) == 0);

 public:
  PanelProduct(const Linear& p, int64_t panel, void* scratch)
      : p_(p),
        first_(panel * P::kPanel),
        columns_(p.N - first_ < P::kPanel ? p.N - first_ : P::kPanel),
        packed_(static_cast<In*>(scratch)),
        sums_(reinterpret_cast<float*>(static_cast<char*>(scratch) + kPackedBytes)) {
    for (int64_t n = 0; p.bias && n < columns_; ++n)
      bias_[n] = widen(static_cast<const In*>(p.bias)[first_ + n]);
  }

  void run(int64_t begin, int64_t end) {
    constexpr float ones[P::kTileRows] = {1, 1, 1, 1, 1, 1};
    for (int64_t k = 0; k < p_.K; k += kSection) {
      const int64_t depth = p_.K - k < kSection ? p_.K - k : kSection;
      const bool first = k == 0, last = k + depth == p_.K;
      pack(k, depth);
      for (int64_t m = begin; m < end; m += P::kTileRows) {
        const int64_t rows = end - m < P::kTileRows ? end - m : P::kTileRows;
        float* const sums = sums_ + (first && last ? 0 : (m - begin) * P::kPanel);
        for (int64_t d = 0; d < depth; d += kRun)
          panel_rows<In>(rows, P::steps(depth - d < kRun ? depth - d : kRun),
                         static_cast<const In*>(p_.x) + m * p_.x_row + k + d, p_.x_row,
                         packed_ + d * P::kPanel, sums, P::kPanel,
                         first && d == 0 ? nullptr : ones);
        if (last) finish(m, rows, sums);
      }
    }
  }

 private:
  void pack(int64_t k, int64_t depth) {
    const In* const from =
        static_cast<const In*>(p_.weight) + first_ * p_.weight_row + k * p_.weight_column;
    const auto row_by = [from](int64_t stride) {
      return [from, stride](int64_t i) { return PackRow<In>{from + i * stride, 1}; };
    };
    if (p_.weight_column == 1)
      pack_columns<In, In>(columns_, depth, packed_, row_by(p_.weight_row));
    else
      pack_rows<In, In>(depth, columns_, packed_, 0, row_by(p_.weight_column));
  }

  void finish(int64_t m, int64_t rows, const float* sums) const {
    for (int64_t i = 0; i < rows; ++i) {
      In* const to = static_cast<In*>(p_.y) + (m + i) * p_.y_row + first_;
      const auto value = [&](int64_t n) {
        const Vec<float> sum = load_vec<float>(sums + i * P::kPanel + n);
        return p_.bias ? sum + load_vec<float>(bias_ + n) : sum;
      };
      int64_t n = 0;
      for (; n + 2 * kLane <= columns_; n += 2 * kLane)
        store_two(to + n, value(n), value(n + kLane));
      if (n == columns_) continue;
      In some[2 * kLane];
      store_two(some, value(n), value(n + kLane));
      std::memcpy(to + n, some, static_cast<size_t>(columns_ - n) * sizeof(In));
    }
  }

  const Linear& p_;
  const int64_t first_, columns_;
  In* const packed_;
  float* const sums_;
  float bias_[P::kPanel] = {};
};

bool takes([[maybe_unused]] DType dtype) {
#if defined(__AVX512BF16__)
  if (dtype == DType::bf16) return true;
#endif
#if defined(__AVX2__)
  return dtype == DType::f32;
#else
  return false;  // two columns of a vector are too few
#endif
}

void multiply(const Linear& p, int64_t begin, int64_t end, int64_t panel, void* scratch) {
#if defined(__AVX512BF16__)
  if (p.dtype == DType::bf16) return PanelProduct<bf16>(p, panel, scratch).run(begin, end);
#endif
  PanelProduct<float>(p, panel, scratch).run(begin, end);
}

}  // namespace

extern const LinearKernels linear_kernels = {Panel<float>::kPanel, Panel<float>::kTileRows, takes,
                                             multiply};

}  // namespace weft::comm::cpu::WEFT_CPU_LEVEL
