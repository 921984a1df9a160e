// Attention forward on one ISA level: a block of rows over a range of keys, with the online softmax
// of FlashAttention (Dao et al., arXiv 2205.14135; the recurrence is Milakov & Gimelshein's, arXiv
// 1805.02867).
//
//   for each block of 256 keys:                       m, l, o: of a row, so far; start -inf, 0, 0
//     s = q · kᵀ,  s = s · scale · log2(e), or what the options make of it
//     m' = max(m, max s),  p = 2^(s - m'),  alpha = 2^(m - m')
//     l = alpha · l + Σ p,  o = alpha · o + p · v
//   out = o / l,  lse = ln(2) · (m + log2(l))
//
// Plan. Keys and values come in panels (cpu/panel.h), K as columns and V as rows, of the product's
// element type In: bf16 where the ISA has its dot product, else float; double for double. They are
// packed straight from where they lie, strided, packed, paged, int8 or of another dtype: once a
// call where several blocks of rows share them, else block by block by the only task that reads
// them. The queries of a task lie as rows of In. Then, for each block of keys that some row sees,
// kSubRows rows at a time: their scores panel by panel, the softmax row by row in one sweep for the
// maximum and one for the rest, and the product with V, which scales o as it adds to it. Keys that
// no row of a tile sees are skipped, and those at a block's ends that a mask hides from all of its
// rows; others beyond a row's own range count as -inf.
//
// Cost of a key and a row: 2 (D + Dv) multiply-adds, 24 of which a tile's step does in 24
// instructions beside 10 loads, and about 12 instructions for 16 keys of softmax. Packing a vector
// costs about 7 cycles for K and 4 for V, or what reading it from memory does. The scores (kSubRows ×
// 256 floats), the queries, o and a block of keys stay in L2. Bound by the multiply-adds; with few
// rows, as in decoding, by reading K and V.

#include "attention/cpu/forward.h"
#include "cpu/dropout.h"
#include "cpu/panel.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {
namespace {

constexpr int64_t kSubRows = 48;

// A block of keys and values in panels: K's columns, then V's rows.
template <class In>
class Keys {
  using P = Panel<In>;

 public:
  explicit Keys(const Forward& p) : p_(p), keys_(key_block(p)) {}

  int64_t values_at() const { return keys_ / P::kPanel * P::elements(p_.D); }
  int64_t elements() const {
    return values_at() + round_up(p_.Dv, P::kPanel) / P::kPanel * P::elements(keys_);
  }

  // The block that begins with key `first`; zeros behind the last key where a product reaches them.
  void pack(int64_t b, int64_t k, int64_t first, In* to) const {
    const Problem::Extent extent = p_.extent(b);
    const int64_t count = extent.T - first < keys_ ? extent.T - first : keys_;
    const char* rows[kMostKeys];
    float scales[kMostKeys];
    find_rows(p_, p_.k, p_.k_scale, extent, b, k, {first, first + count}, rows, scales);
    with_key_type<In>(p_.k.dtype, [&](auto type) {
      using T = decltype(type);
      for (int64_t n = 0; n < count; n += P::kPanel)
        pack_columns<In, T>(count - n < P::kPanel ? count - n : P::kPanel, p_.D,
                            to + n / P::kPanel * P::elements(p_.D), [&](int64_t i) {
                              return PackRow<T>{reinterpret_cast<const T*>(rows[n + i]),
                                                scales[n + i]};
                            });
    });
    find_rows(p_, p_.v, p_.v_scale, extent, b, k, {first, first + count}, rows, scales);
    with_key_type<In>(p_.v.dtype, [&](auto type) {
      using T = decltype(type);
      pack_rows<In, T>(count, p_.Dv, to + values_at(), P::elements(keys_), [&](int64_t t) {
        return PackRow<T>{reinterpret_cast<const T*>(rows[t]), scales[t]};
      });
    });
  }

 private:
  const Forward& p_;
  int64_t keys_;
};

template <class In>
class Block {
  using A = acc_t<In>;
  using P = Panel<In>;
  static constexpr int kLane = P::kLane;
  static constexpr A kNone = -static_cast<A>(__builtin_inf());

 public:
  Block(const Forward& p, int64_t rows, bool packs, void* scratch)
      : p_(p),
        keys_(key_block(p)),
        depth_(P::steps(p.D) * P::kStep),
        columns_(round_up(p.Dv, P::kPanel)) {
    Scratch pieces(scratch);
    q_ = pieces.take<In>(rows * depth_);
    own_ = pieces.take<In>(packs ? Keys<In>(p).elements() : 0);
    s_ = pieces.take<A>(kSubRows * keys_);
    p_rows_ = pieces.take<In>(kSubRows * keys_);
    o_ = pieces.take<A>(rows * columns_);
    max_ = pieces.take<A>(rows);
    sum_ = pieces.take<A>(rows);
    seen_ = pieces.take<Range>(rows);
    alpha_ = pieces.take<A>(kSubRows);
    keep_ = pieces.take<A>(p.dropout.p > 0 ? keys_ : 0);
    bytes_ = pieces.used();
  }
  int64_t bytes() const { return bytes_; }

  void run(const ForwardTask& task) {
    task_ = &task;
    extent_ = p_.extent(task.b);
    group_ = p_.H / p_.K;
    rows_ = task.row_end - task.row_begin;
    load_queries();
    start();
    Keys<In> keys(p_);
    for (int64_t first = task.key_begin; first < task.key_end; first += keys_) {
      const Range block = {first, first + keys_ < task.key_end ? first + keys_ : task.key_end};
      packed_ = nullptr;
      for (int64_t r = 0; r < rows_; r += kSubRows) {
        const int64_t end = r + kSubRows < rows_ ? r + kSubRows : rows_;
        const Range seen = seen_by(r, end, block);
        if (seen.empty()) continue;
        fetch(p_.bias, r, end, seen);
        fetch(p_.mask, r, end, seen);
        if (!packed_) packed_ = find(keys, first);
        sub_block(r, end, first, seen);
      }
    }
    finish();
  }

 private:
  int64_t query(int64_t r) const { return (task_->row_begin + r) / group_; }
  int64_t head(int64_t r) const { return task_->k * group_ + (task_->row_begin + r) % group_; }

  // The keys that some of the rows [begin, end) see: a later query sees later keys.
  Range range_of(int64_t begin, int64_t end) const {
    return {seen_[begin].begin, seen_[end - 1].end};
  }

  // Those of a block, without what the mask hides at its ends.
  Range seen_by(int64_t begin, int64_t end, Range block) const {
    return shown(
        p_, task_->b, intersect(block, range_of(begin, end)), end - begin,
        [&](int64_t r) { return query(begin + r); }, [&](int64_t r) { return head(begin + r); });
  }

  const In* find(const Keys<In>& keys, int64_t first) const {
    if (task_->packed)
      return static_cast<const In*>(task_->packed) + first / keys_ * keys.elements();
    keys.pack(task_->b, task_->k, first, own_);
    return own_;
  }

  void load_queries() {
    constexpr int64_t wide = Packed<In, In>::kWide;
    for (int64_t r = 0; r < rows_; ++r) {
      const char* row = p_.q.at(extent_.q_batch, extent_.q_row + query(r), head(r));
      In* to = q_ + r * depth_;
      with_key_type<In>(p_.q.dtype, [&](auto type) {
        using T = decltype(type);
        const T* from = reinterpret_cast<const T*>(row);
        int64_t d = 0;
        for (; d + wide <= p_.D; d += wide)
          store_vec<A>(to + d, Packed<In, T>::load(from + d, wide, 1));
        if (d < p_.D) {
          In some[wide];
          store_vec<A>(some, Packed<In, T>::load(from + d, p_.D - d, 1));
          for (int64_t i = d; i < depth_; ++i) to[i] = some[i - d];
        }
      });
    }
  }

  void start() {
    for (int64_t r = 0; r < rows_; ++r) {
      Softmax<In>::start(p_, task_->first, head(r), max_[r], sum_[r]);
      seen_[r] = visible(p_, extent_, query(r));
    }
    std::memset(o_, 0, static_cast<size_t>(rows_ * columns_) * sizeof(A));
  }

  // Their rows of a bias or mask lie apart: on their way into L2 while the scores are computed.
  void fetch(const Scores& x, int64_t begin, int64_t end, Range keys) const {
    if (!x || x.column != 1) return;
    const char* last = nullptr;
    for (int64_t r = begin; r < end; ++r) {
      const char* row = x.at(task_->b, head(r), query(r), keys.begin);
      if (row == last) continue;
      last = row;
      const char* stop = row + (keys.end - keys.begin) * static_cast<int64_t>(size_of(x.dtype));
      for (; row < stop; row += 64) __builtin_prefetch(row, 0, 2);
    }
  }

  // Rows [begin, end) against the keys `seen` of the packed block, whose first is `first`.
  void sub_block(int64_t begin, int64_t end, int64_t first, Range seen) {
    const auto tiles = [&](auto&& f) {  // f(first row, rows, keys within the block)
      for (int64_t r = begin; r < end; r += P::kTileRows) {
        const int64_t rows = end - r < P::kTileRows ? end - r : P::kTileRows;
        const Range keys = intersect(seen, range_of(r, r + rows));
        if (!keys.empty()) f(r, rows, Range{keys.begin - first, keys.end - first});
      }
    };
    for (int64_t n = (seen.begin - first) / P::kPanel * P::kPanel; n < seen.end - first;
         n += P::kPanel)
      tiles([&](int64_t r, int64_t rows, Range keys) {
        if (n < keys.end && n + P::kPanel > keys.begin)
          panel_rows<In>(rows, P::steps(p_.D), q_ + r * depth_, depth_,
                         packed_ + n / P::kPanel * P::elements(p_.D), s_ + (r - begin) * keys_ + n,
                         keys_, nullptr);
      });
    const Softmax<In> softmax(p_, extent_, task_->b, keep_);
    tiles([&](int64_t r, int64_t rows, Range keys) {
      const Range whole = {keys.begin / Softmax<In>::kWide * Softmax<In>::kWide,
                           round_up(keys.end, Softmax<In>::kWide)};
      for (int64_t i = r; i < r + rows; ++i) {
        const int64_t slot = i - begin;
        alpha_[slot] = softmax.row(head(i), query(i), first, whole, intersect(seen, seen_[i]),
                                   s_ + slot * keys_, p_rows_ + slot * keys_, max_[i], sum_[i]);
      }
    });
    for (int64_t n = 0; n < columns_; n += P::kPanel)
      tiles([&](int64_t r, int64_t rows, Range keys) {
        const int64_t t = keys.begin / P::kStep * P::kStep;
        panel_rows<In>(
            rows, P::steps(keys.end - t), p_rows_ + (r - begin) * keys_ + t, keys_,
            packed_ + Keys<In>(p_).values_at() + n / P::kPanel * P::elements(keys_) + t * P::kPanel,
            o_ + r * columns_ + n, columns_, alpha_ + (r - begin));
      });
  }

  void finish() {
    for (int64_t r = 0; r < rows_; ++r)
      finish_row(p_, extent_, *task_, r, query(r), head(r), o_ + r * columns_, columns_, max_[r],
                 sum_[r]);
  }

  const Forward& p_;
  const ForwardTask* task_ = nullptr;
  Problem::Extent extent_ = {};
  int64_t keys_, depth_, columns_, group_ = 1, rows_ = 0, bytes_ = 0;
  In *q_, *own_, *p_rows_;
  const In* packed_ = nullptr;
  A *s_, *o_, *max_, *sum_, *alpha_, *keep_;
  Range* seen_;
};

int64_t packed_bytes(const Forward& p) {
  return with_product_type(p.q.dtype, [&](auto type) {
    return Keys<decltype(type)>(p).elements() * static_cast<int64_t>(sizeof(type));
  });
}

void pack(const Forward& p, int64_t b, int64_t k, int64_t first, void* packed) {
  with_product_type(p.q.dtype, [&](auto type) {
    Keys<decltype(type)>(p).pack(b, k, first, static_cast<decltype(type)*>(packed));
  });
}

int64_t scratch_bytes(const Forward& p, int64_t rows, bool packs) {
  return with_product_type(
      p.q.dtype, [&](auto type) { return Block<decltype(type)>(p, rows, packs, nullptr).bytes(); });
}

void run(const Forward& p, const ForwardTask& task, void* scratch) {
  with_product_type(p.q.dtype, [&](auto type) {
    Block<decltype(type)>(p, task.row_end - task.row_begin, !task.packed, scratch).run(task);
  });
}

// The splits' weights are exp(lse - most) / Σ exp(lse - most), joined in order.
template <class A>
void merge_splits(const Forward& p, const ForwardTask& task, int64_t splits, int64_t stride) {
  const Problem::Extent e = p.extent(task.b);
  const int64_t group = p.H / p.K, rows = task.row_end - task.row_begin;
  const A none = -static_cast<A>(__builtin_inf());
  const int64_t lse_stride = stride / p.Dv;
  for (int64_t n = 0; n < (task.k_end - task.k) * rows; ++n) {
    const int64_t k = task.k + n / rows, r = task.row_begin + n % rows;
    const int64_t at = (n / rows) * p.S * group + n % rows;
    A* o = static_cast<A*>(task.part) + at * p.Dv;  // the first split's becomes the result
    const A* lse = static_cast<const A*>(task.part_lse) + at;
    A most = none, sum = 0;
    for (int64_t s = 0; s < splits; ++s) most = vmax(most, lse[s * lse_stride]);
    const A base = most > none ? most : 0;
    for (int64_t s = 0; s < splits; ++s) sum += std::exp(lse[s * lse_stride] - base);
    for (int64_t s = 0; s < splits; ++s) {
      const A weight = sum != 0 ? std::exp(lse[s * lse_stride] - base) / sum : A{0};
      const A* part = o + s * stride;
      for (int64_t d = 0; d < p.Dv; ++d) o[d] = (s ? o[d] : 0) + weight * part[d];
    }
    write_row(p, e, task.b, r / group, k * group + r % group, o,
              sum != 0 ? base + std::log(sum) : none);
  }
}

void merge(const Forward& p, const ForwardTask& task, int64_t splits, int64_t stride) {
  if (p.q.dtype == DType::f64)
    merge_splits<double>(p, task, splits, stride);
  else
    merge_splits<float>(p, task, splits, stride);
}

}  // namespace

extern const ForwardKernels forward_kernels;
const ForwardKernels forward_kernels = {packed_bytes, pack, scratch_bytes, run, merge};

}  // namespace weft::attention::cpu::WEFT_CPU_LEVEL
