// Attention forward on one ISA level where few queries meet many keys, as in decoding: keys and
// values are used as they lie, each read once for all the queries of its head.
//
//   s[r][t] = q[r] · k[t]        o[r] = alpha[r] · o[r] + Σ p[r][t] · v[t]        M = S · G rows r
//
// Plan. A task is a range of one sequence's keys for several key heads. It goes over the keys in
// chunks of kChunk, and within a chunk over the heads, so that memory is read nearly in order however
// heads and keys lie; while it works on one (chunk, head) it prefetches the next. Scores: a tile of R
// rows by L / R keys (L lanes) multiplies along D, which leaves L vectors of partial sums; they are
// added up lane by lane in a tree that ends in one vector of L scores. Then the softmax of forward.h,
// and the values: p spread over the lanes, times a row of v (two rows, interleaved, where bf16 has
// its dot product), R rows by 16 / R vectors of o in registers.
//
// Cost of a key of D = Dv = 128 in bf16 with 4 rows: 16 + 16 dot products, 15 for the sums, 8 shuffles,
// 3 of softmax, about 60 cycles for 512 bytes. Memory gives one core fewer bytes than that: bound by
// reading.

#include "attention/cpu/forward.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {
namespace {

constexpr int64_t kChunk = 64;
constexpr int64_t kMostRows = 16;

// The element at lane i of every vector is its own row's: L vectors become one of L sums.
template <class A, int kDistance, int... I>
inline Vec<A> add_halves(Vec<A> a, Vec<A> b, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  const Vec<A> kept = __builtin_shufflevector(a, b, ((I & kDistance) ? I + n : I)...),
               other = __builtin_shufflevector(a, b, ((I & kDistance) ? I : I + n)...);
  return kept + __builtin_shufflevector(other, other, (I ^ kDistance)...);
}
template <class A, int kDistance = kLanes<A> / 2>
inline Vec<A> sum_lanes(Vec<A>* v) {
#pragma GCC unroll 8
  for (int i = 0; i < kDistance; ++i)
    v[i] = add_halves<A, kDistance>(v[i], v[i + kDistance],
                                    std::make_integer_sequence<int, kLanes<A>>{});
  if constexpr (kDistance > 1)
    return sum_lanes<A, kDistance / 2>(v);
  else
    return v[0];
}

// T: how keys and values lie. In: what products are computed in.
template <class T, class In>
class Decoder {
  using A = acc_t<In>;
  using P = Panel<In>;
  using Load = Packed<In, T>;
  static constexpr int kLane = P::kLane;
  static constexpr bool kScaled = std::is_same_v<T, int8_t>;

 public:
  Decoder(const Forward& p, int64_t heads, void* scratch)
      : p_(p), group_(p.H / p.K), padded_(padded_rows(p.S * group_)) {
    Scratch pieces(scratch);
    q_ = pieces.take<In>(heads * padded_ * p.D);
    o_ = pieces.take<A>(heads * padded_ * p.Dv);
    s_ = pieces.take<A>(padded_ * kChunk);
    p_rows_ = pieces.take<In>(padded_ * kChunk);
    max_ = pieces.take<A>(heads * padded_);
    sum_ = pieces.take<A>(heads * padded_);
    alpha_ = pieces.take<A>(padded_);
    keep_ = pieces.take<A>(p.dropout.p > 0 ? kChunk : 0);
    bytes_ = pieces.used();
  }
  int64_t bytes() const { return bytes_; }

  void run(const ForwardTask& task) {
    task_ = &task;
    extent_ = p_.extent(task.b);
    rows_ = extent_.S * group_;
    start();
    const Range seen = {visible(p_, extent_, 0).begin, visible(p_, extent_, extent_.S - 1).end};
    const Range keys = intersect(seen, {task.key_begin, task.key_end});
    Unit unit[2];
    int64_t k = task.k, first = keys.begin / kChunk * kChunk;
    if (!keys.empty()) find(unit[0], k, first, keys.end);
    for (int now = 0; first < keys.end; now ^= 1) {
      const Unit& next = unit[now ^ 1];
      if (++k == task.k_end) k = task.k, first += kChunk;
      if (first < keys.end)
        find(unit[now ^ 1], k, first, keys.end);
      else
        unit[now ^ 1].count = 0;
      process(unit[now], next);
    }
    for (int64_t head = task.k; head < task.k_end; ++head)
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t at = (head - task.k) * padded_ + r;
        finish_row(p_, extent_, task, (head - task.k) * p_.S * group_ + r, r / group_,
                   head * group_ + r % group_, o_ + at * p_.Dv, p_.Dv, max_[at], sum_[at]);
      }
  }

 private:
  // The keys of one chunk and head.
  struct Unit {
    int64_t k, first, count = 0;
    const char *keys[kChunk], *values[kChunk];
    float key_scales[kChunk], value_scales[kChunk];
  };

  static int64_t padded_rows(int64_t rows) {
    int64_t tile = 1;
    while (tile < rows && tile < kMostTile) tile *= 2;
    return round_up(rows, tile);
  }
  static constexpr int kMostTile = kLane < 8 ? kLane : 8;  // rows

  void find(Unit& unit, int64_t k, int64_t first, int64_t end) const {
    unit.k = k;
    unit.first = first;
    unit.count = first + kChunk < end ? kChunk : end - first;
    const Range keys = {first, first + unit.count};
    find_rows(p_, p_.k, p_.k_scale, extent_, task_->b, k, keys, unit.keys, unit.key_scales);
    find_rows(p_, p_.v, p_.v_scale, extent_, task_->b, k, keys, unit.values, unit.value_scales);
  }

  void start() {
    const int64_t heads = task_->k_end - task_->k;
    std::memset(q_, 0, static_cast<size_t>(heads * padded_ * p_.D) * sizeof(In));
    std::memset(o_, 0, static_cast<size_t>(heads * padded_ * p_.Dv) * sizeof(A));
    std::memset(p_rows_, 0, static_cast<size_t>(padded_ * kChunk) * sizeof(In));
    std::memset(alpha_, 0, static_cast<size_t>(padded_) * sizeof(A));
    for (int64_t k = 0; k < heads; ++k)
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t at = k * padded_ + r, h = (task_->k + k) * group_ + r % group_;
        load_query(p_.q.at(extent_.q_batch, extent_.q_row + r / group_, h), q_ + at * p_.D);
        Softmax<In>::start(p_, task_->first, h, max_[at], sum_[at]);
      }
  }

  void load_query(const char* from, In* to) const {
    with_key_type<In>(p_.q.dtype, [&](auto type) {
      using Q = decltype(type);
      for (int64_t d = 0; d < p_.D; d += Load::kWide)
        store_vec<A>(to + d,
                     Packed<In, Q>::load(reinterpret_cast<const Q*>(from) + d, Load::kWide, 1));
    });
  }

  void process(const Unit& unit, const Unit& next) {
    const int64_t at = (unit.k - task_->k) * padded_;
    tiles([&](auto rows, int64_t r) {
      scores<decltype(rows)::value>(q_ + (at + r) * p_.D, unit, r ? none_ : next, s_ + r * kChunk);
    });
    const Softmax<In> softmax(p_, extent_, task_->b, keep_);
    const Range whole = {0, round_up(unit.count, Softmax<In>::kWide)},
                keys = {unit.first, unit.first + unit.count};
    for (int64_t r = 0; r < rows_; ++r) {
      A* s = s_ + r * kChunk;
      if constexpr (kScaled)
        for (int64_t t = 0; t < unit.count; ++t) s[t] *= unit.key_scales[t];
      alpha_[r] =
          softmax.row(unit.k * group_ + r % group_, r / group_, unit.first, whole,
                      intersect(keys, visible(p_, extent_, r / group_)), s, p_rows_ + r * kChunk,
                      max_[at + r], sum_[at + r], kScaled ? unit.value_scales : nullptr);
    }
    tiles([&](auto rows, int64_t r) {
      values<decltype(rows)::value>(p_rows_ + r * kChunk, unit, r ? none_ : next, alpha_ + r,
                                    o_ + (at + r) * p_.Dv);
    });
  }

  // f(R, first row) for tiles of R rows.
  template <int R = kMostTile, class F>
  void tiles(F&& f, int64_t r = 0) const {
    for (; padded_ - r >= R; r += R) f(std::integral_constant<int, R>{}, r);
    if constexpr (R > 1) tiles<R / 2>(f, r);
  }

  // Rows [from, to) of the next unit, all their lines together: one by one, beside the loads of this
  // unit, they take half as long again.
  static void prefetch(const Unit& next, const char* const* rows, int64_t from, int64_t to,
                       int64_t elements) {
    const int64_t bytes = elements * static_cast<int64_t>(sizeof(T));
    for (int64_t t = from; t < to && t < next.count; ++t)
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(rows[t] + i, 0, 2);
  }

  template <int R>
  void scores(const In* q, const Unit& unit, const Unit& next, A* s) const {
    constexpr int keys = kLane / R;
    for (int64_t t = 0; t < unit.count; t += keys) {
      prefetch(next, next.keys, t, t + keys, p_.D);
      const T* row[keys];
      for (int j = 0; j < keys; ++j)
        row[j] = reinterpret_cast<const T*>(unit.keys[t + j < unit.count ? t + j : unit.count - 1]);
      Vec<A> sum[kLane] = {};
      for (int64_t d = 0; d < p_.D; d += Load::kWide) {
        Vec<A> x[R];
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) x[i] = load_vec<A>(q + i * p_.D + d);
#pragma GCC unroll 16
        for (int j = 0; j < keys; ++j) {
          const Vec<A> y = Load::load(row[j] + d, Load::kWide, 1);
#pragma GCC unroll 8
          for (int i = 0; i < R; ++i) sum[i * keys + j] = P::multiply(x[i], y, sum[i * keys + j]);
        }
      }
      A all[kLane];
      store_vec<A>(all, sum_lanes<A>(sum));
      for (int i = 0; i < R; ++i) std::memcpy(s + i * kChunk + t, all + i * keys, keys * sizeof(A));
    }
  }

  template <int R>
  void values(const In* p, const Unit& unit, const Unit& next, const A* alpha, A* o) const {
    constexpr int64_t step = P::kStep;
    constexpr int vectors = kLane < 16 ? 2 : R == 8 ? 2 : R == 4 ? 4 : 8;
    int64_t column = 0;
    for (; column + vectors * kLane <= p_.Dv; column += vectors * kLane)
      value_columns<R, vectors>(p, unit, column ? none_ : next, alpha, o, column);
    for (; column < p_.Dv; column += step * kLane)
      value_columns<R, step>(p, unit, column ? none_ : next, alpha, o, column);
  }

  template <int R, int kVectors>
  void value_columns(const In* p, const Unit& unit, const Unit& next, const A* alpha, A* o,
                     int64_t column) const {
    constexpr int64_t step = P::kStep;
    Vec<A> sum[R][kVectors] = {};
    for (int64_t t = 0; t < unit.count; t += step) {
      prefetch(next, next.values, t, t + step, p_.Dv);
      const T* row = reinterpret_cast<const T*>(unit.values[t]) + column;
      Vec<A> y[kVectors];
      if constexpr (step == 2) {
        const T* second =
            reinterpret_cast<const T*>(unit.values[t + 1 < unit.count ? t + 1 : t]) + column;
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; j += 2) {
          y[j] = Load::load(row + j * kLane, Load::kWide, 1);
          y[j + 1] = Load::load(second + j * kLane, Load::kWide, 1);
          zip_bf16(y[j], y[j + 1]);
        }
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) y[j] = Load::load(row + j * kLane, Load::kWide, 1);
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const Vec<A> x = P::spread(p + i * kChunk + t);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) sum[i][j] = P::multiply(x, y[j], sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        A* to = o + i * p_.Dv + column + j * kLane;
        store_vec<A>(to, multiply_add(broadcast(alpha[i]), load_vec<A>(to), sum[i][j]));
      }
  }

  const Forward& p_;
  const ForwardTask* task_ = nullptr;
  Problem::Extent extent_ = {};
  int64_t group_, padded_, rows_ = 0, bytes_ = 0;
  In *q_, *p_rows_;
  A *o_, *s_, *max_, *sum_, *alpha_, *keep_;
  Unit none_ = {};
};

// f(Decoder of the problem's types).
template <class F>
inline auto with_decoder(const Forward& p, int64_t heads, void* scratch, F&& f) {
  if (p.k.dtype == DType::i8) return f(Decoder<int8_t, float>(p, heads, scratch));
  return with_float_type(p.k.dtype, [&](auto type) {
    using T = decltype(type);
    using In =
        std::conditional_t<std::is_same_v<T, double>, double,
                           std::conditional_t<kBf16Dot && std::is_same_v<T, bf16>, bf16, float>>;
    return f(Decoder<T, In>(p, heads, scratch));
  });
}

// Whole vectors only, and few enough rows that reading is what takes time.
bool takes(const Forward& p) {
  const bool dot = kBf16Dot && p.k.dtype == DType::bf16;
  const int64_t lanes = p.q.dtype == DType::f64 ? kLanes<double> : kLanes<float>,
                wide = dot ? 2 * lanes : lanes;
  return p.S * (p.H / p.K) <= kMostRows && p.D % wide == 0 && p.Dv % wide == 0 &&
         p.k.dtype == p.v.dtype && !(p.q.dtype == DType::f64 && p.k.dtype == DType::i8);
}

int64_t scratch_bytes(const Forward& p, int64_t heads) {
  return with_decoder(p, heads, nullptr, [](const auto& d) { return d.bytes(); });
}

void run(const Forward& p, const ForwardTask& task, void* scratch) {
  with_decoder(p, task.k_end - task.k, scratch, [&](auto&& d) { d.run(task); });
}

}  // namespace

extern const DecodeKernels decode_kernels;
const DecodeKernels decode_kernels = {takes, scratch_bytes, run};

}  // namespace weft::attention::cpu::WEFT_CPU_LEVEL
