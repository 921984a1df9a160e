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
// packed straight from where they lie, strided, packed, paged, int8 or of another dtype: once a call
// where several blocks of rows share them, else block by block by the only task that reads them. The
// queries of a task lie as rows of In. Then, for each block of keys that some row sees, kSubRows rows
// at a time: their scores panel by panel, the softmax row by row in one sweep for the maximum and one for the rest,
// and the product with V, which scales o as it adds to it. Keys that no row of a tile sees are
// skipped, those beyond a row's own range count as -inf.
//
// Cost of a key and a row: 2 (D + Dv) multiply-adds, 24 of which a tile's step does in 24
// instructions beside 10 loads, and about 12 instructions for 16 keys of softmax. Packing a vector
// costs about 7 cycles for K and 4 for V, or what reading it from memory does. The scores (kSubRows ×
// 256 floats), the queries, o and a block of keys stay in L2. Bound by the multiply-adds; with few
// rows, as in decoding, by reading K and V.

#include "attention/cpu/kernels.h"
#include "attention/cpu/scores.h"
#include "cpu/dropout.h"
#include "cpu/panel.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {
namespace {

#if defined(__AVX512BF16__)
constexpr bool kBf16Dot = true;
#else
constexpr bool kBf16Dot = false;
#endif

constexpr int64_t kSubRows = 48;
constexpr int64_t kMostKeys = 256;

// The element type that a tensor's products are computed in: f(In{}).
template <class F>
inline auto with_product_type(DType dtype, F&& f) {
  if (dtype == DType::f64) return f(double{});
  if constexpr (kBf16Dot)
    if (dtype == DType::bf16) return f(bf16{});
  return f(float{});
}

// The type of K and V in memory: f(T{}) for those that can come with In.
template <class In, class F>
inline void with_key_type(DType dtype, F&& f) {
  if constexpr (std::is_same_v<In, double>) {
    f(double{});
  } else if (dtype == DType::i8) {
    f(int8_t{});
  } else if constexpr (std::is_same_v<In, bf16>) {
    f(bf16{});
  } else if (dtype == DType::bf16) {
    f(bf16{});
  } else if (dtype == DType::f16) {
    f(f16{});
  } else {
    f(float{});
  }
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Scratch is handed out front to back, each piece on its own cache line; counts where it has no base.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// One row of the result, from o of Dv elements (up to a vector more may be read).
template <class A>
void write_row(const Forward& p, const Problem::Extent& e, int64_t b, int64_t i, int64_t h, A* o,
               A lse) {
  const int64_t row = e.q_row + i;
  static_cast<A*>(p.lse)[p.sequences.cu_q ? h * p.total_q + row : (b * p.H + h) * p.S + row] = lse;
  char* out = p.out.at(e.q_batch, row, h);
  if (p.out.dtype == DType::i8) {
    const float* shift = p.out_shift ? p.out_shift + h * p.Dv : nullptr;
    const float* smooth = p.out_smooth ? p.out_smooth + h * p.Dv : nullptr;
    for (int64_t d = 0; d < p.Dv; ++d) {
      const A t = (o[d] - (shift ? shift[d] : 0)) / (smooth ? smooth[d] : 1);
      const A q = std::nearbyint(t / *p.out_scale);
      out[d] = static_cast<char>(q > 127 ? 127 : q > -128 ? static_cast<int8_t>(q) : -128);
    }
    return;
  }
  const auto store = [&](auto type) {
    using T = decltype(type);
    T* to = reinterpret_cast<T*>(out);
    int64_t d = 0;
    for (; d + kLanes<A> <= p.Dv; d += kLanes<A>) store_lanes<A>(to + d, load_vec<A>(o + d));
    for (; d < p.Dv; ++d) narrow(o[d], to[d]);
  };
  if constexpr (std::is_same_v<A, double>)
    store(double{});
  else
    with_float_type(p.out.dtype, [&](auto type) {
      if constexpr (!std::is_same_v<decltype(type), double>) store(type);
    });
}

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
    find_rows(p_.k, p_.k_scale, extent, b, k, {first, first + count}, rows, scales);
    with_key_type<In>(p_.k.dtype, [&](auto type) {
      using T = decltype(type);
      for (int64_t n = 0; n < count; n += P::kPanel)
        pack_columns<In, T>(count - n < P::kPanel ? count - n : P::kPanel, p_.D,
                            to + n / P::kPanel * P::elements(p_.D), [&](int64_t i) {
                              return PackRow<T>{reinterpret_cast<const T*>(rows[n + i]),
                                                scales[n + i]};
                            });
    });
    find_rows(p_.v, p_.v_scale, extent, b, k, {first, first + count}, rows, scales);
    with_key_type<In>(p_.v.dtype, [&](auto type) {
      using T = decltype(type);
      pack_rows<In, T>(count, p_.Dv, to + values_at(), P::elements(keys_), [&](int64_t t) {
        return PackRow<T>{reinterpret_cast<const T*>(rows[t]), scales[t]};
      });
    });
  }

 private:
  // Where the keys lie, and the scale of each.
  void find_rows(const Heads& tensor, const Vectors& scale, const Problem::Extent& extent,
                 int64_t b, int64_t k, Range keys, const char** rows, float* scales) const {
    const Sequences& sequences = p_.sequences;
    int64_t batch = extent.k_batch, row = extent.k_row + keys.begin, left = keys.end - keys.begin;
    const int32_t* page = nullptr;
    if (sequences.block_table) {
      page = sequences.block_table + b * sequences.table_stride + row / sequences.page_size;
      row %= sequences.page_size;
    }
    while (left > 0) {
      int64_t run = left;
      if (page) {
        batch = *page++;
        if (run > sequences.page_size - row) run = sequences.page_size - row;
      }
      const char* data = tensor.at(batch, row, k);
      const int64_t stride = tensor.row * static_cast<int64_t>(size_of(tensor.dtype));
      for (int64_t i = 0; i < run; ++i) *rows++ = data + i * stride;
      for (int64_t i = 0; i < run; ++i) *scales++ = scale ? scale.at(batch, row + i, k) : 1.0f;
      left -= run;
      row = page ? 0 : row + run;
    }
  }

  const Forward& p_;
  int64_t keys_;
};

template <class In>
class Block {
  using A = acc_t<In>;
  using P = Panel<In>;
  static constexpr int kLane = P::kLane;
  static constexpr Exp2 kExact = std::is_same_v<In, bf16> ? Exp2::half : Exp2::full;
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
      if (intersect(block, range_of(0, rows_)).empty()) continue;
      if (task.packed) {
        packed_ = static_cast<const In*>(task.packed) + first / keys_ * keys.elements();
      } else {
        keys.pack(task.b, task.k, first, own_);
        packed_ = own_;
      }
      for (int64_t r = 0; r < rows_; r += kSubRows)
        sub_block(r, r + kSubRows < rows_ ? r + kSubRows : rows_, block);
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
      const bool sink = p_.sinks.data && task_->first;
      max_[r] = sink ? static_cast<A>(p_.sinks.at(0, 0, head(r)) * kLog2e) : kNone;
      sum_[r] = max_[r] > kNone ? A{1} : A{0};
      seen_[r] = visible(p_, extent_, query(r));
    }
    std::memset(o_, 0, static_cast<size_t>(rows_ * columns_) * sizeof(A));
  }

  // Rows [begin, end) against the packed block.
  void sub_block(int64_t begin, int64_t end, Range block) {
    const Range seen = intersect(block, range_of(begin, end));
    if (seen.empty()) return;
    const auto tiles = [&](auto&& f) {  // f(first row, rows, keys within the block)
      for (int64_t r = begin; r < end; r += P::kTileRows) {
        const int64_t rows = end - r < P::kTileRows ? end - r : P::kTileRows;
        const Range keys = intersect(block, range_of(r, r + rows));
        if (!keys.empty()) f(r, rows, Range{keys.begin - block.begin, keys.end - block.begin});
      }
    };
    for (int64_t n = (seen.begin - block.begin) / P::kPanel * P::kPanel; n < seen.end - block.begin;
         n += P::kPanel)
      tiles([&](int64_t r, int64_t rows, Range keys) {
        if (n < keys.end && n + P::kPanel > keys.begin)
          panel_rows<In>(rows, P::steps(p_.D), q_ + r * depth_, depth_,
                         packed_ + n / P::kPanel * P::elements(p_.D), s_ + (r - begin) * keys_ + n,
                         keys_, nullptr);
      });
    tiles([&](int64_t r, int64_t rows, Range keys) {
      const Range whole = {keys.begin / kWide * kWide, round_up(keys.end, kWide)};
      for (int64_t i = r; i < r + rows; ++i)
        softmax(i, i - begin, block.begin, whole, intersect(block, seen_[i]));
    });
    for (int64_t n = 0; n < columns_; n += P::kPanel)
      tiles([&](int64_t r, int64_t rows, Range keys) {
        const int64_t first = keys.begin / P::kStep * P::kStep;
        panel_rows<In>(rows, P::steps(keys.end - first), p_rows_ + (r - begin) * keys_ + first,
                       keys_,
                       packed_ + Keys<In>(p_).values_at() + n / P::kPanel * P::elements(keys_) +
                           first * P::kPanel,
                       o_ + r * columns_ + n, columns_, alpha_ + (r - begin));
      });
  }

  static constexpr int64_t kWide = P::kStep * kLane;  // scores that are taken together

  // Row r, of which the block's scores stand at slot: p over the scores `whole`, of which the row
  // sees `keys`.
  void softmax(int64_t r, int64_t slot, int64_t first, Range whole, Range keys) {
    A* s = s_ + slot * keys_;
    In* to = p_rows_ + slot * keys_;
    A scale = 1;
    if (keys.empty()) keys = {first + whole.end, first + whole.end};
    if (has_options(p_))
      ScoreRow(p_, extent_, task_->b, head(r), query(r)).apply(s, first, keys);
    else
      scale = static_cast<A>(p_.softmax_scale * kLog2e);
    for (int64_t t = whole.begin; t < keys.begin - first; ++t) s[t] = kNone;
    for (int64_t t = keys.end - first; t < whole.end; ++t) s[t] = kNone;
    if (scale < 0) {  // -inf must stay the least
      for (int64_t t = keys.begin - first; t < keys.end - first; ++t) s[t] *= scale;
      scale = 1;
    }

    const A most = row_max(s, whole) * scale;
    const A last = max_[r], next = most > last ? most : last;
    const A base = next == kNone ? A{0} : next;
    const A alpha = exp2_one(last - base);
    max_[r] = next;
    alpha_[slot] = alpha;
    if (p_.dropout.p > 0) {
      sum_[r] = sum_[r] * alpha + exp_row(s, s, whole, scale, base);
      drop(r, first, s, whole);
      for (int64_t t = whole.begin; t < whole.end; t += kWide) store_p(to + t, s + t);
    } else {
      sum_[r] = sum_[r] * alpha + exp_row(s, to, whole, scale, base);
    }
  }

  static A row_max(const A* s, Range whole) {
    Vec<A> a = broadcast(kNone), b = a;
    int64_t t = whole.begin;
    for (; t + 2 * kLane <= whole.end; t += 2 * kLane) {
      a = vmax(a, load_vec<A>(s + t));
      b = vmax(b, load_vec<A>(s + t + kLane));
    }
    if (t < whole.end) a = vmax(a, load_vec<A>(s + t));
    return reduce<A>(vmax(a, b), [](auto x, auto y) { return x > y ? x : y; });
  }

  static A exp2_one(A x) { return exp2<kExact>(broadcast(x))[0]; }

  // p = 2^(s · scale - base), and their sum.
  template <class To>
  static A exp_row(const A* s, To* to, Range whole, A scale, A base) {
    const Vec<A> times = broadcast(scale), less = broadcast(-base);
    Vec<A> total[2] = {};
    for (int64_t t = whole.begin; t < whole.end; t += kWide) {
      Vec<A> e[P::kStep];
#pragma GCC unroll 2
      for (int j = 0; j < P::kStep; ++j) {
        e[j] = exp2<kExact>(multiply_add(load_vec<A>(s + t + j * kLane), times, less));
        total[j] += e[j];
      }
      if constexpr (std::is_same_v<To, A>) {
        for (int j = 0; j < P::kStep; ++j) store_vec<A>(to + t + j * kLane, e[j]);
      } else {
        store_vec<uint32_t>(to + t, to_bf16(e[0], e[1]));
      }
    }
    return reduce<A>(total[0] + total[1], [](auto x, auto y) { return x + y; });
  }

  static void store_p(In* to, const A* from) {
    if constexpr (P::kStep == 2)
      store_vec<uint32_t>(to, to_bf16(load_vec<A>(from), load_vec<A>(from + kLane)));
    else
      store_vec<A>(to, load_vec<A>(from));
  }

  void drop(int64_t r, int64_t first, A* s, Range whole) {
    const int64_t row = (task_->b * p_.H + head(r)) * p_.S + query(r);
    draw_dropout(p_.dropout, row * p_.T + first + whole.begin, whole.end - whole.begin, 0, keep_,
                 static_cast<bool*>(nullptr));
    for (int64_t t = whole.begin; t < whole.end; ++t) s[t] *= keep_[t - whole.begin];
  }

  void finish() {
    for (int64_t r = 0; r < rows_; ++r) {
      const A sum = sum_[r], inverse = sum != 0 ? 1 / sum : A{0};
      A* o = o_ + r * columns_;
      for (int64_t d = 0; d < columns_; d += kLane)
        store_vec<A>(o + d, load_vec<A>(o + d) * broadcast(inverse));
      const A lse = sum != 0 ? max_[r] * static_cast<A>(kLn2) + std::log(sum) : kNone;
      if (task_->part) {
        std::memcpy(static_cast<A*>(task_->part) + r * p_.Dv, o,
                    static_cast<size_t>(p_.Dv) * sizeof(A));
        static_cast<A*>(task_->part_lse)[r] = lse;
      } else {
        write_row(p_, extent_, task_->b, query(r), head(r), o, lse);
      }
    }
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
  const int64_t group = p.H / p.K;
  const A none = -static_cast<A>(__builtin_inf());
  A* parts = static_cast<A*>(task.part);
  const A* lses = static_cast<const A*>(task.part_lse);
  for (int64_t r = 0; r < task.row_end - task.row_begin; ++r) {
    A* o = parts + r * p.Dv;  // the first split's becomes the result
    A most = none, sum = 0;
    for (int64_t s = 0; s < splits; ++s) most = vmax(most, lses[s * stride / p.Dv + r]);
    for (int64_t s = 0; s < splits && most > none; ++s)
      sum += std::exp(lses[s * stride / p.Dv + r] - most);
    for (int64_t s = 0; s < splits && most > none; ++s) {
      const A weight = std::exp(lses[s * stride / p.Dv + r] - most) / sum;
      const A* part = o + s * stride;
      for (int64_t d = 0; d < p.Dv; ++d) o[d] = (s ? o[d] : 0) + weight * part[d];
    }
    write_row(p, e, task.b, (task.row_begin + r) / group,
              task.k * group + (task.row_begin + r) % group, o,
              most > none ? most + std::log(sum) : none);
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
