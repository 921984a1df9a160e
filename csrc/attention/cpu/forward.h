// What the ways of computing forward share on one ISA level: element types, scratch memory, where keys
// lie, and how a row is finished.
#pragma once

#include "attention/cpu/kernels.h"
#include "attention/cpu/scores.h"
#include "cpu/dropout.h"
#include "cpu/panel.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {

#if defined(__AVX512BF16__)
constexpr bool kBf16Dot = true;
#else
constexpr bool kBf16Dot = false;
#endif

constexpr int64_t kMostKeys = 256;  // that are taken together

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
  if (dtype == DType::i8) {
    f(int8_t{});
  } else if constexpr (std::is_same_v<In, double>) {
    f(double{});
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

// f(batch, row, count) for the runs of rows that hold `keys` of sequence b, whatever the cache is made
// of.
template <class F>
inline void for_each_run(const Forward& p, const Problem::Extent& extent, int64_t b, Range keys,
                         F&& f) {
  const Sequences& sequences = p.sequences;
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
    f(batch, row, run);
    left -= run;
    row = page ? 0 : row + run;
  }
}

// Where those of one key head lie, and the scale of each.
inline void find_rows(const Forward& p, const Heads& tensor, const Vectors& scale,
                      const Problem::Extent& extent, int64_t b, int64_t k, Range keys,
                      const char** rows, float* scales) {
  for_each_run(p, extent, b, keys, [&](int64_t batch, int64_t row, int64_t count) {
    const char* data = tensor.at(batch, row, k);
    const int64_t stride = tensor.row * static_cast<int64_t>(size_of(tensor.dtype));
    for (int64_t i = 0; i < count; ++i) *rows++ = data + i * stride;
    for (int64_t i = 0; i < count; ++i) *scales++ = scale ? scale.at(batch, row + i, k) : 1.0f;
  });
}

// One row of the result, from o of Dv elements (up to a vector more may be read).
template <class A>
inline void write_row(const Forward& p, const Problem::Extent& e, int64_t b, int64_t i, int64_t h,
                      A* o, A lse) {
  const int64_t row = e.q_row + i;
  if (p.lse)
    static_cast<A*>(p.lse)[p.sequences.cu_q ? h * p.total_q + row : (b * p.H + h) * p.S + row] =
        lse;
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

// Row r of a task, whose o of Dv elements, maximum and sum are complete: the result, or the part that
// one split of several leaves.
template <class A>
inline void finish_row(const Forward& p, const Problem::Extent& extent, const ForwardTask& task,
                       int64_t r, int64_t i, int64_t h, A* o, int64_t columns, A max, A sum) {
  const Vec<A> inverse = broadcast(sum != 0 ? 1 / sum : A{0});
  for (int64_t d = 0; d < columns; d += kLanes<A>)
    store_vec<A>(o + d, load_vec<A>(o + d) * inverse);
  const A lse =
      sum != 0 ? max * static_cast<A>(kLn2) + std::log(sum) : -static_cast<A>(__builtin_inf());
  if (!task.part) return write_row(p, extent, task.b, i, h, o, lse);
  std::memcpy(static_cast<A*>(task.part) + r * p.Dv, o, static_cast<size_t>(p.Dv) * sizeof(A));
  static_cast<A*>(task.part_lse)[r] = lse;
}

// The online softmax of one sequence's rows.
template <class In>
class Softmax {
  using A = acc_t<In>;
  using P = Panel<In>;
  static constexpr int kLane = P::kLane;
  static constexpr Exp2 kExact = std::is_same_v<In, bf16> ? Exp2::half : Exp2::full;
  static constexpr A kNone = -static_cast<A>(__builtin_inf());

 public:
  static constexpr int64_t kWide = P::kStep * kLane;  // scores that are taken together

  // keep: as many accumulators as a row has scores, where there is dropout.
  Softmax(const Forward& p, const Problem::Extent& extent, int64_t b, A* keep)
      : p_(p), extent_(extent), b_(b), keep_(keep) {}

  // What a row begins with: its sink, or nothing.
  static void start(const Forward& p, bool first, int64_t h, A& max, A& sum) {
    max = p.sinks.data && first ? static_cast<A>(p.sinks.at(0, 0, h) * kLog2e) : kNone;
    sum = max > kNone ? A{1} : A{0};
  }

  // Query i of head h over the scores `whole` of s, whose first is that of key `first`, and of which
  // it sees `keys`: p, times `weights` where given, into `to`; max and sum are brought up to date.
  // Returns what the row's o is to be scaled with.
  A row(int64_t h, int64_t i, int64_t first, Range whole, Range keys, A* s, In* to, A& max, A& sum,
        const float* weights = nullptr) const {
    A scale = 1;
    if (keys.empty()) keys = {first + whole.end, first + whole.end};
    if (has_options(p_))
      ScoreRow(p_, extent_, b_, h, i).apply(s, first, keys);
    else
      scale = static_cast<A>(p_.softmax_scale * kLog2e);
    for (int64_t t = whole.begin; t < keys.begin - first; ++t) s[t] = kNone;
    for (int64_t t = keys.end - first; t < whole.end; ++t) s[t] = kNone;
    if (scale <= 0) {  // -inf must stay the least
      for (int64_t t = keys.begin - first; t < keys.end - first; ++t) s[t] *= scale;
      scale = 1;
    }

    const A most = row_max(s, whole) * scale;
    const A next = most > max ? most : max;
    const A base = next == kNone ? A{0} : next;
    const A alpha = exp2<kExact>(broadcast(max - base))[0];
    max = next;
    if (p_.dropout.p == 0 && !weights) {
      sum = sum * alpha + exp_row(s, to, whole, scale, base);
      return alpha;
    }
    sum = sum * alpha + exp_row(s, s, whole, scale, base);
    if (p_.dropout.p > 0) drop(h, i, first, s, whole);
    for (int64_t t = keys.begin - first; weights && t < keys.end - first; ++t)
      s[t] *= static_cast<A>(weights[t]);
    for (int64_t t = whole.begin; t < whole.end; t += kWide) store_p(to + t, s + t);
    return alpha;
  }

 private:
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

  void drop(int64_t h, int64_t i, int64_t first, A* s, Range whole) const {
    const int64_t row = (b_ * p_.H + h) * p_.S + i;
    draw_dropout(p_.dropout, row * p_.T + first + whole.begin, whole.end - whole.begin, 0, keep_,
                 static_cast<bool*>(nullptr));
    for (int64_t t = whole.begin; t < whole.end; ++t) s[t] *= keep_[t - whole.begin];
  }

  const Forward& p_;
  const Problem::Extent& extent_;
  int64_t b_;
  A* keep_;
};

}  // namespace weft::attention::cpu::WEFT_CPU_LEVEL
