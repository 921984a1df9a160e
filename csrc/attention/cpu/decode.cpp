// Attention forward on one ISA level where few queries meet many keys, as in decoding: keys and
// values are used as they lie, each read once for all the queries of its head.
//
//   s[r][t] = q[r] · k[t]        o[r] = alpha[r] · o[r] + Σ p[r][t] · v[t]        M = S · G rows r
//
// Plan. A task is a range of one sequence's keys for several key heads, whose elements of one key
// lie side by side. It goes over the keys in chunks of kChunk, over a chunk's keys and then its
// values in blocks of some 32 KiB, and within a block over the heads: so memory is read in its own
// order, and while one block is worked on, the lines of the next are prefetched one after the
// other, two beside each step of a product. A chunk that a mask hides is not read. Scores: a tile of R rows by
// L / R keys (L lanes) multiplies along D, which leaves L vectors of partial sums; they are added
// up lane by lane in a tree that ends in one vector of L scores. Then the softmax of forward.h, and
// the values: p spread over the lanes, times a row of v (two rows, interleaved, where bf16 has its
// dot product), R rows by 16 / R vectors of o in registers.
//
// Cost of a key of D = Dv = 128 in bf16 with 4 rows: 16 + 16 dot products, 15 for the sums, 8 shuffles,
// 4 for o, 3 of softmax, about 60 cycles for 512 bytes. Memory gives one core fewer bytes than that:
// bound by reading. An int8 cache and 16-bit queries take as much arithmetic for half the bytes:
// 16-bit integers stand for q and p then, exact to a step of 1/32767 of a row's largest.

#include "attention/cpu/forward.h"
#include "cpu/words.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {
namespace {

constexpr int64_t kChunk = 128;
constexpr int64_t kBlockBytes = 32768;  // of keys or values, between two starts of prefetching
constexpr int64_t kLeastBlock = 16;     // keys: as many as a tile has lanes
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

// How elements T of keys and values are multiplied, as In: vectors of sums, and kStep products to each.
template <class T, class In>
struct Products {
  using S = acc_t<In>;
  using Load = Packed<In, T>;
  static constexpr int kStep = Panel<In>::kStep, kWide = Load::kWide;

  static Vec<S> load(const T* p) { return Load::load(p, kWide, 1); }
  static Vec<S> spread(const In* p) { return Panel<In>::spread(p); }
  static Vec<S> multiply(Vec<S> a, Vec<S> b, Vec<S> sum) { return Panel<In>::multiply(a, b, sum); }
  static void zip([[maybe_unused]] Vec<S>& first, [[maybe_unused]] Vec<S>& second) {
    if constexpr (kStep == 2) zip_bf16(first, second);
  }
};

// Bytes against queries and p in 16 bits, exactly but for these: a step of each row's own.
#if defined(__AVX512VNNI__)
template <>
struct Products<int8_t, int16_t> {
  using S = int32_t;
  static constexpr int kStep = 2, kWide = 2 * kLanes<S>;

  static Vec<S> load(const int8_t* p) { return load_words(p); }
  static Vec<S> spread(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    return broadcast<int32_t>(both);
  }
  static Vec<S> multiply(Vec<S> a, Vec<S> b, Vec<S> sum) { return dot_words(a, b, sum); }
  static void zip(Vec<S>& first, Vec<S>& second) {
    auto a = reinterpret_cast<Vec<float>>(first), b = reinterpret_cast<Vec<float>>(second);
    zip_bf16(a, b);
    first = reinterpret_cast<Vec<S>>(a);
    second = reinterpret_cast<Vec<S>>(b);
  }
};
#endif

// T: how keys and values lie. In: what products are computed in.
template <class T, class In>
class Decoder {
  using A = acc_t<In>;
  using P = Products<T, In>;
  using S = typename P::S;
  static constexpr int kLane = kLanes<A>;
  static constexpr bool kScaled = std::is_same_v<T, int8_t>, kWords = std::is_same_v<In, int16_t>;
  using Weigh = Softmax<std::conditional_t<kWords, float, In>>;

 public:
  Decoder(const Forward& p, int64_t heads, void* scratch)
      : p_(p), group_(p.H / p.K), padded_(padded_rows(p.S * group_)) {
    Scratch pieces(scratch);
    q_ = pieces.take<In>(heads * padded_ * p.D);
    o_ = pieces.take<A>(heads * padded_ * p.Dv);
    s_ = pieces.take<A>(heads * padded_ * kChunk);
    p_rows_ = pieces.take<In>(heads * padded_ * kChunk);
    max_ = pieces.take<A>(heads * padded_);
    sum_ = pieces.take<A>(heads * padded_);
    alpha_ = pieces.take<A>(heads * padded_);
    q_scale_ = pieces.take<A>(kWords ? heads * padded_ : 0);
    p_scale_ = pieces.take<A>(kWords ? heads * padded_ : 0);
    keep_ = pieces.take<A>(p.dropout.p > 0 ? kChunk : 0);
    key_scales_ = pieces.take<float>(kScaled ? heads * kChunk : 0);
    value_scales_ = pieces.take<float>(kScaled ? heads * kChunk : 0);
    bytes_ = pieces.used();
  }
  int64_t bytes() const { return bytes_; }

  void run(const ForwardTask& task) {
    task_ = &task;
    extent_ = p_.extent(task.b);
    rows_ = extent_.S * group_;
    heads_ = task.k_end - task.k;
    block_ = kLeastBlock;
    while (2 * block_ <= kChunk && 2 * block_ * heads_ * p_.D * kSize <= kBlockBytes) block_ *= 2;
    start();
    const Range seen = {visible(p_, extent_, 0).begin, visible(p_, extent_, extent_.S - 1).end};
    const Range keys = intersect(seen, {task.key_begin, task.key_end});
    Chunk chunk[2];
    int64_t first = next_chunk(keys.begin / kChunk * kChunk, keys.end);
    find(chunk[0], first, keys.end);
    for (int now = 0; first < keys.end; now ^= 1) {
      first = next_chunk(first + kChunk, keys.end);
      find(chunk[now ^ 1], first, keys.end);
      process(chunk[now], chunk[now ^ 1]);
    }
    for (int64_t head = 0; head < heads_; ++head)
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t at = head * padded_ + r;
        finish_row(p_, extent_, task, head * p_.S * group_ + r, r / group_,
                   (task.k + head) * group_ + r % group_, o_ + at * p_.Dv, p_.Dv, max_[at],
                   sum_[at]);
      }
  }

 private:
  static constexpr int64_t kSize = sizeof(T);

  // Where some keys lie: the task's first head of them, and its scale.
  struct Rows {
    const char* data[kChunk];
    const float* scale[kChunk];
  };
  struct Chunk {
    int64_t first, count;
    Rows keys, values;
  };

  // The lines of a block in the order of memory, in even shares of a few at a time.
  class Prefetch {
   public:
    Prefetch() = default;
    // Of rows [from, to): `heads` pieces of `bytes`, `stride` bytes apart.
    Prefetch(const Rows& rows, int64_t from, int64_t to, int64_t heads, int64_t bytes,
             int64_t stride)
        : row_(rows.data + from),
          end_(rows.data + to),
          heads_(heads),
          bytes_(bytes),
          stride_(stride) {
      if (bytes == stride) bytes_ *= heads, heads_ = 1;
    }
    // In `steps` shares, as even as pairs of lines are.
    void divide(int64_t steps) {
      const int64_t pairs = (end_ - row_) * heads_ * ((bytes_ + 127) / 128);
      share_ = ceil_div(pairs, steps);
    }
    WEFT_INLINE void step() {
      for (int64_t i = share_; i > 0 && row_ != end_; --i) {
        const char* line = *row_ + head_ * stride_ + at_;
        __builtin_prefetch(line, 0, 2);
        __builtin_prefetch(line + 64, 0, 2);
        if ((at_ += 128) >= bytes_) next_piece();
      }
    }
    void finish() {
      while (row_ != end_) step();
    }

   private:
    void next_piece() {
      at_ = 0;
      if (++head_ < heads_) return;
      head_ = 0;
      ++row_;
    }

    const char* const* row_ = nullptr;
    const char* const* end_ = nullptr;
    int64_t heads_ = 0, bytes_ = 0, stride_ = 0, share_ = 1, head_ = 0, at_ = 0;
  };

  static int64_t padded_rows(int64_t rows) {
    int64_t tile = 1;
    while (tile < rows && tile < kMostTile) tile *= 2;
    return round_up(rows, tile);
  }
  static constexpr int kMostTile = kLane < 8 ? kLane : 8;  // rows

  // The first chunk from `first` on that the mask does not hide from all rows.
  int64_t next_chunk(int64_t first, int64_t end) const {
    const auto hidden = [&] {
      const Range keys = {first, first + kChunk < end ? first + kChunk : end};
      return shown(
                 p_, task_->b, keys, heads_ * rows_, [&](int64_t r) { return r % rows_ / group_; },
                 [&](int64_t r) { return (task_->k + r / rows_) * group_ + r % group_; })
          .empty();
    };
    while (first < end && hidden()) first += kChunk;
    return first;
  }

  void find(Chunk& chunk, int64_t first, int64_t end) const {
    chunk.first = first;
    chunk.count = first >= end ? 0 : first + kChunk < end ? kChunk : end - first;
    find(chunk.keys, p_.k, p_.k_scale, {first, first + chunk.count});
    find(chunk.values, p_.v, p_.v_scale, {first, first + chunk.count});
  }
  void find(Rows& rows, const Heads& tensor, const Vectors& scale, Range keys) const {
    int64_t n = 0;
    for_each_run(p_, extent_, task_->b, keys, [&](int64_t batch, int64_t row, int64_t count) {
      for (int64_t i = 0; i < count; ++i, ++n) {
        rows.data[n] = tensor.at(batch, row + i, task_->k);
        if constexpr (kScaled) {
          rows.scale[n] = &scale.at(batch, row + i, task_->k);
          __builtin_prefetch(rows.scale[n], 0, 2);
        }
      }
    });
  }

  void start() {
    std::memset(q_, 0, static_cast<size_t>(heads_ * padded_ * p_.D) * sizeof(In));
    std::memset(o_, 0, static_cast<size_t>(heads_ * padded_ * p_.Dv) * sizeof(A));
    std::memset(p_rows_, 0, static_cast<size_t>(heads_ * padded_ * kChunk) * sizeof(In));
    std::memset(alpha_, 0, static_cast<size_t>(heads_ * padded_) * sizeof(A));
    for (int64_t k = 0; k < heads_; ++k)
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t at = k * padded_ + r, h = (task_->k + k) * group_ + r % group_;
        const char* q = p_.q.at(extent_.q_batch, extent_.q_row + r / group_, h);
        if constexpr (kWords) {
          float row[kMostElements];
          load_query<float>(q, row);
          q_scale_[at] = round_to_words(row, p_.D, q_ + at * p_.D);
        } else {
          load_query<In>(q, q_ + at * p_.D);
        }
        Weigh::start(p_, task_->first, h, max_[at], sum_[at]);
      }
  }

  template <class To>
  void load_query(const char* from, To* to) const {
    with_key_type<To>(p_.q.dtype, [&](auto type) {
      using Load = Packed<To, decltype(type)>;
      const auto* q = reinterpret_cast<const decltype(type)*>(from);
      for (int64_t d = 0; d < p_.D; d += Load::kWide)
        store_vec<A>(to + d, Load::load(q + d, Load::kWide, 1));
    });
  }

  void process(const Chunk& chunk, const Chunk& next) {
    for (int64_t from = 0; from < chunk.count; from += block_) {
      const int64_t to = from + block_ < chunk.count ? from + block_ : chunk.count;
      prefetch_ = to < chunk.count ? block_of(chunk, chunk.keys, to, p_.D, p_.k.head)
                                   : block_of(chunk, chunk.values, 0, p_.Dv, p_.v.head);
      tiles([&](auto rows, int64_t r) { scores<decltype(rows)::value>(chunk, from, to, r); });
      prefetch_.finish();
    }
    if constexpr (kScaled) {
      gather(chunk.keys, chunk.count, p_.k_scale.head, key_scales_);
      gather(chunk.values, chunk.count, p_.v_scale.head, value_scales_);
    }
    for (int64_t head = 0; head < heads_; ++head) weigh(chunk, head);
    for (int64_t from = 0; from < chunk.count; from += block_) {
      const int64_t to = from + block_ < chunk.count ? from + block_ : chunk.count;
      prefetch_ = to < chunk.count ? block_of(chunk, chunk.values, to, p_.Dv, p_.v.head)
                                   : block_of(next, next.keys, 0, p_.D, p_.k.head);
      tiles([&](auto rows, int64_t r) { values<decltype(rows)::value>(chunk, from, to, r); });
      prefetch_.finish();
    }
  }

  Prefetch block_of(const Chunk& chunk, const Rows& rows, int64_t from, int64_t elements,
                    int64_t head_stride) const {
    const int64_t to = from + block_ < chunk.count ? from + block_ : chunk.count;
    return {rows, from, to, heads_, elements * kSize, head_stride * kSize};
  }

  // The scales of a chunk, head by head; those of a key lie side by side.
  void gather(const Rows& rows, int64_t count, int64_t stride, float* to) const {
    for (int64_t t = 0; t < count; ++t)
      for (int64_t head = 0; head < heads_; ++head)
        to[head * kChunk + t] = rows.scale[t][head * stride];
  }

  // Scores of one head become p, and alpha what its o is to be scaled with.
  void weigh(const Chunk& chunk, int64_t head) {
    const Weigh softmax(p_, extent_, task_->b, keep_);
    const Range whole = {0, round_up(chunk.count, Weigh::kWide)},
                keys = {chunk.first, chunk.first + chunk.count};
    const float* key_scales = key_scales_ + head * kChunk;
    const float* value_scales = value_scales_ + head * kChunk;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t at = head * padded_ + r;
      A* s = s_ + at * kChunk;
      if constexpr (kScaled)
        for (int64_t t = 0; t < chunk.count; ++t)
          s[t] *= key_scales[t] * (kWords ? q_scale_[at] : 1);
      const auto row = [&](auto* to) {
        return softmax.row((task_->k + head) * group_ + r % group_, r / group_, chunk.first, whole,
                           intersect(keys, visible(p_, extent_, r / group_)), s, to, max_[at],
                           sum_[at], kScaled ? value_scales : nullptr);
      };
      In* p = p_rows_ + at * kChunk;
      if constexpr (kWords) {
        alpha_[at] = row(s);
        p_scale_[at] = round_to_words(s, whole.end, p);
      } else {
        alpha_[at] = row(p);
      }
    }
  }

  // f(R, first row) for tiles of R rows.
  template <int R = kMostTile, class F>
  void tiles(F&& f, int64_t r = 0) const {
    for (; padded_ - r >= R; r += R) f(std::integral_constant<int, R>{}, r);
    if constexpr (R > 1) tiles<R / 2>(f, r);
  }

  // Keys [from, to) of a chunk by rows r … r + R - 1 of every head.
  template <int R>
  void scores(const Chunk& chunk, int64_t from, int64_t to, int64_t r) {
    constexpr int keys = kLane / R;
    prefetch_.divide(heads_ * ceil_div(to - from, keys) * (p_.D / P::kWide));
    for (int64_t t = from; t < to; t += keys)
      for (int64_t head = 0; head < heads_; ++head) {
        const T* row[keys];
        for (int j = 0; j < keys; ++j)
          row[j] = reinterpret_cast<const T*>(chunk.keys.data[t + j < to ? t + j : to - 1]) +
                   head * p_.k.head;
        const int64_t at = head * padded_ + r;
        score_tile<R>(q_ + at * p_.D, row, s_ + at * kChunk + t);
      }
  }

  template <int R>
  void score_tile(const In* q, const T* const* row, A* s) {
    constexpr int keys = kLane / R;
    Vec<S> sum[kLane] = {};
    for (int64_t d = 0; d < p_.D; d += P::kWide) {
      prefetch_.step();
      Vec<S> x[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) x[i] = load_vec<S>(q + i * p_.D + d);
#pragma GCC unroll 16
      for (int j = 0; j < keys; ++j) {
        const Vec<S> y = P::load(row[j] + d);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) sum[i * keys + j] = P::multiply(x[i], y, sum[i * keys + j]);
      }
    }
    A all[kLane];
    store_vec<A>(all, __builtin_convertvector(sum_lanes<S>(sum), Vec<A>));
    for (int i = 0; i < R; ++i) std::memcpy(s + i * kChunk, all + i * keys, keys * sizeof(A));
  }

  // The same with values: o = alpha · o + p · v, where alpha is 1 behind the chunk's first block.
  template <int R>
  void values(const Chunk& chunk, int64_t from, int64_t to, int64_t r) {
    constexpr int64_t step = P::kStep;
    constexpr int vectors = kLane < 16 ? 2 : R == 8 ? 2 : R == 4 ? 4 : 8;
    const int64_t wide = p_.Dv / (vectors * kLane),
                  rest = p_.Dv % (vectors * kLane) / (step * kLane);
    prefetch_.divide(heads_ * (wide + rest) * ceil_div(to - from, step));
    for (int64_t head = 0; head < heads_; ++head) {
      int64_t column = 0;
      for (; column + vectors * kLane <= p_.Dv; column += vectors * kLane)
        value_columns<R, vectors>(chunk, from, to, head, r, column);
      for (; column < p_.Dv; column += step * kLane)
        value_columns<R, step>(chunk, from, to, head, r, column);
    }
  }

  template <int R, int kVectors>
  void value_columns(const Chunk& chunk, int64_t from, int64_t to, int64_t head, int64_t r,
                     int64_t column) {
    constexpr int64_t step = P::kStep;
    const int64_t at = head * padded_ + r, offset = head * p_.v.head + column;
    const In* p = p_rows_ + at * kChunk;
    A* o = o_ + at * p_.Dv + column;
    Vec<S> sum[R][kVectors] = {};
    for (int64_t t = from; t < to; t += step) {
      prefetch_.step();
      const T* row = reinterpret_cast<const T*>(chunk.values.data[t]) + offset;
      Vec<S> y[kVectors];
      if constexpr (step == 2) {
        const T* second =
            reinterpret_cast<const T*>(chunk.values.data[t + 1 < to ? t + 1 : t]) + offset;
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; j += 2) {
          y[j] = P::load(row + j * kLane);
          y[j + 1] = P::load(second + j * kLane);
          P::zip(y[j], y[j + 1]);
        }
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) y[j] = P::load(row + j * kLane);
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const Vec<S> x = P::spread(p + i * kChunk + t);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) sum[i][j] = P::multiply(x, y[j], sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Vec<A> alpha = broadcast(from ? A{1} : alpha_[at + i]),
                   scale = broadcast(kWords ? p_scale_[at + i] : A{1});
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        A* to_o = o + i * p_.Dv + j * kLane;
        Vec<A> product = __builtin_convertvector(sum[i][j], Vec<A>);
        if constexpr (kWords) product = product * scale;
        store_vec<A>(to_o, multiply_add(alpha, load_vec<A>(to_o), product));
      }
    }
  }

  const Forward& p_;
  const ForwardTask* task_ = nullptr;
  Problem::Extent extent_ = {};
  int64_t group_, padded_, heads_ = 0, rows_ = 0, block_ = 0, bytes_ = 0;
  In *q_, *p_rows_;
  A *o_, *s_, *max_, *sum_, *alpha_, *q_scale_, *p_scale_, *keep_;
  float *key_scales_, *value_scales_;
  Prefetch prefetch_;
};

// Whether an int8 cache is multiplied by 16-bit integers: queries of 16 bits lose nothing by it.
bool takes_words(const Forward& p) {
  constexpr int64_t wide = 2 * kLanes<float>;
  return kWordDot && size_of(p.q.dtype) == 2 && p.D % wide == 0 && p.Dv % wide == 0;
}

// f(Decoder of the problem's types).
template <class F>
inline auto with_decoder(const Forward& p, int64_t heads, void* scratch, F&& f) {
  if constexpr (kWordDot)
    if (p.k.dtype == DType::i8 && takes_words(p))
      return f(Decoder<int8_t, int16_t>(p, heads, scratch));
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
