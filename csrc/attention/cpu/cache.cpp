// The family's small ops, a row at a time (compiled once per level):
//
//   append   row used_k[b] + j of sequence b's cache = new row j; into int8 caches
//            x8 = clamp(rne(x / scale)), scale = max |x| / 127 over the D elements, or given
//   rotary   (x, y) = (x · cos - y · sin, x · sin + y · cos) for R / 2 pairs of a head
//   merge    o = Σ exp(lse_p - lse) · o_p,  lse = log Σ exp(lse_p)
//
// A task takes whole rows [heads, elements], all heads of one before the next; what a row's heads
// share (place in the cache, cos and sin) is looked up once a row. Every element is read once and
// written once: copies and rotary run at the speed of memory, the quantiser at about half of it. It
// divides each vector and looks at elements a second time, in L1.
#include <cmath>

#include "attention/cpu/cache.h"
#include "cpu/vec.h"

namespace weft::attention::cpu::WEFT_CPU_LEVEL {

using namespace ::weft::cpu::WEFT_CPU_LEVEL;

namespace {

// f(i, count) for the vectors of n elements; only the last may have fewer than kLanes.
template <class A, class F>
inline void for_lanes(int64_t n, F&& f) {
  constexpr int step = kLanes<A>;
  int64_t i = 0;
  for (; i + step <= n; i += step) f(i, step);
  if (i < n) f(i, static_cast<int>(n - i));
}

template <class A, class U>
inline Vec<A> load_some(const U* p, int count) {
  if (count == kLanes<A>) return load_lanes<A>(p);
  U whole[kLanes<A>] = {};
  for (int i = 0; i < count; ++i) whole[i] = p[i];
  return load_lanes<A>(whole);
}
template <class A, class U>
inline void store_some(U* p, Vec<A> v, int count) {
  if (count == kLanes<A>) return store_lanes<A>(p, v);
  U whole[kLanes<A>];
  store_lanes<A>(whole, v);
  for (int i = 0; i < count; ++i) p[i] = whole[i];
}

// Which sequence a row of a batch belongs to, row after row.
class Walk {
 public:
  Walk(int64_t B, int64_t S, const int32_t* cu) : B_(B), S_(S), cu_(cu) {}

  int64_t b = 0, row = 0;  // row: within the sequence

  // false where the row belongs to none.
  bool at(int64_t n) {
    if (!cu_) {
      b = n / S_;
      row = n % S_;
      return true;
    }
    while (b < B_ && n >= cu_[b + 1]) ++b;
    if (b == B_ || n < cu_[b]) return false;
    row = n - cu_[b];
    return true;
  }
  // Where row n stands in a tensor of the batch.
  int64_t batch() const { return cu_ ? 0 : b; }
  int64_t place(int64_t n) const { return cu_ ? n : row; }

 private:
  int64_t B_, S_;
  const int32_t* cu_;
};

// ---- append

template <class A>
inline void store_rounded(int8_t* p, Vec<A> v, int count) {
  using Bytes = typename VecOf<int8_t, kLanes<A>>::type;
  v = vmin(vmax(v, broadcast<A>(-128)), broadcast<A>(127));
  constexpr A magic = std::is_same_v<A, float> ? A(0x1.8p23) : A(0x1.8p52);
  v = (v + magic) - magic;  // to nearest even
  const Bytes bytes = __builtin_convertvector(
      __builtin_convertvector(v, typename VecOf<int32_t, 4 * kLanes<A>>::type), Bytes);
  if (count == kLanes<A>) {
    std::memcpy(p, &bytes, sizeof bytes);
  } else {
    for (int i = 0; i < count; ++i) p[i] = bytes[i];
  }
}

template <class U>
float scale_of(const U* x, int64_t n) {
  using A = acc_t<U>;
  Vec<A> most = {};
  for_lanes<A>(
      n, [&](int64_t i, int count) { most = magnitude_max(most, load_some<A>(x + i, count)); });
  // Magnitudes order like the integers that their bits spell, NaN above all.
  using Bits = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  const Bits bits =
      reduce<Bits>(reinterpret_cast<Vec<Bits>>(most), [](auto a, auto b) { return a > b ? a : b; });
  A top;
  std::memcpy(&top, &bits, sizeof top);
  return static_cast<float>(top / 127);
}

template <class U>
void quantise(const U* x, int64_t n, float scale, int8_t* to) {
  using A = acc_t<U>;
  const Vec<A> divisor = broadcast<A>(scale == 0 ? 1 : scale);  // of zeros
  for_lanes<A>(n, [&](int64_t i, int count) {
    store_rounded<A>(to + i, load_some<A>(x + i, count) / divisor, count);
  });
}

struct Place {
  int64_t batch, row;
};

// One new row's heads, n elements each, into the cache.
void append_row(const Heads& from, const Place& source, const Heads& to, const Place& target,
                const Vectors& scales, int64_t heads, int64_t n) {
  const char* x = from.at(source.batch, source.row, 0);
  char* y = to.at(target.batch, target.row, 0);
  const int64_t bytes = n * static_cast<int64_t>(size_of(from.dtype));
  if (to.dtype != DType::i8) {
    const int64_t x_step = from.head * static_cast<int64_t>(size_of(from.dtype)),
                  y_step = to.head * static_cast<int64_t>(size_of(to.dtype));
    if (x_step == bytes && y_step == bytes) {
      std::memcpy(y, x, static_cast<size_t>(heads * bytes));
    } else {
      for (int64_t h = 0; h < heads; ++h)
        std::memcpy(y + h * y_step, x + h * x_step, static_cast<size_t>(bytes));
    }
    return;
  }
  with_float_type(from.dtype, [&](auto type) {
    using U = decltype(type);
    for (int64_t h = 0; h < heads; ++h) {
      const U* head = reinterpret_cast<const U*>(x) + h * from.head;
      float& scale = scales.at(target.batch, target.row, h);
      if (scales.row != 0) scale = scale_of(head, n);
      quantise(head, n, scale, reinterpret_cast<int8_t*>(y) + h * to.head);
    }
  });
}

void append(const Append& p, int64_t begin, int64_t end) {
  const Sequences& s = p.sequences;
  Walk walk(p.B, p.S, p.cu_new);
  for (int64_t n = begin; n < end; ++n) {
    if (!walk.at(n)) continue;
    const int64_t b = walk.b, row = walk.row + (s.used_k ? s.used_k[b] : 0);
    Place target = {s.cache_row ? s.cache_row[b] : b, row};
    if (s.block_table)
      target = {s.block_table[b * s.table_stride + row / s.page_size], row % s.page_size};
    const Place source = {walk.batch(), walk.place(n)};
    append_row(p.k, source, p.k_cache, target, p.k_scale, p.K, p.D);
    append_row(p.v, source, p.v_cache, target, p.v_scale, p.K, p.Dv);
  }
}

// ---- rotary

template <int... I, class V>
inline V swap_neighbours(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I ^ 1)...);
}

// cos and sin of one position, as the pairs want them: interleaved, each cos twice and each sin as
// -sin, sin.
template <class A>
struct Angles {
  alignas(64) A cos[kMostElements], sin[kMostElements];

  Angles(const Rotary& p, int64_t position) {
    const int64_t half = p.R / 2;
    const A sign = p.conjugate ? A(-1) : A(1);
    with_float_type(p.table_dtype, [&](auto type) {
      using T = decltype(type);
      const T *c = static_cast<const T*>(p.cos) + position * half,
              *s = static_cast<const T*>(p.sin) + position * half;
      for (int64_t i = 0; i < half; ++i) {
        const A x = static_cast<A>(widen(c[i])), y = sign * static_cast<A>(widen(s[i]));
        if (p.interleaved) {
          cos[2 * i] = cos[2 * i + 1] = x;
          sin[2 * i] = -y;
          sin[2 * i + 1] = y;
        } else {
          cos[i] = x;
          sin[i] = y;
        }
      }
    });
  }
};

template <class U>
void turn(const Rotary& p, const Angles<acc_t<U>>& angles, const U* x, U* y) {
  using A = acc_t<U>;
  if (p.interleaved) {
    for_lanes<A>(p.R, [&](int64_t i, int count) {
      const Vec<A> v = load_some<A>(x + i, count);
      const Vec<A> other = swap_neighbours(v, std::make_integer_sequence<int, kLanes<A>>{});
      store_some<A>(
          y + i,
          v * load_some<A>(angles.cos + i, count) + other * load_some<A>(angles.sin + i, count),
          count);
    });
  } else {
    const int64_t half = p.R / 2;
    for_lanes<A>(half, [&](int64_t i, int count) {
      const Vec<A> v = load_some<A>(x + i, count), w = load_some<A>(x + half + i, count),
                   cos = load_some<A>(angles.cos + i, count),
                   sin = load_some<A>(angles.sin + i, count);
      store_some<A>(y + i, v * cos - w * sin, count);
      store_some<A>(y + half + i, v * sin + w * cos, count);
    });
  }
  if (x != y) std::memcpy(y + p.R, x + p.R, static_cast<size_t>(p.D - p.R) * sizeof(U));
}

template <class U>
void rotary_rows(const Rotary& p, int64_t begin, int64_t end) {
  Walk walk(p.B, p.S, p.cu_seqlens);
  for (int64_t n = begin; n < end; ++n) {
    if (!walk.at(n)) continue;
    const Angles<acc_t<U>> angles(p,
                                  p.step * walk.row + (p.offsets ? p.offsets[walk.b] : p.offset));
    for (int64_t h = 0; h < p.H; ++h)
      turn(p, angles, reinterpret_cast<const U*>(p.x.at(walk.batch(), walk.place(n), h)),
           reinterpret_cast<U*>(p.out.at(walk.batch(), walk.place(n), h)));
  }
}

void rotary(const Rotary& p, int64_t begin, int64_t end) {
  with_float_type(p.x.dtype, [&](auto type) { rotary_rows<decltype(type)>(p, begin, end); });
}

// ---- merge

template <class U>
void merge_head(const Merge& p, int64_t b, int64_t s, int64_t h) {
  using A = acc_t<U>;
  const A* lses = static_cast<const A*>(p.lse) + b * p.lse_batch + h * p.lse_head + s * p.lse_row;
  const char* parts = p.parts.at(b, s, h);
  constexpr A kNothing = -static_cast<A>(HUGE_VAL);
  A most = kNothing, total = 0;
  for (int64_t i = 0; i < p.P; ++i) {
    const A lse = lses[i * p.lse_part];
    most = lse > most || lse != lse ? lse : most;
  }
  alignas(64) A sum[kMostElements + kLanes<A>];
  for_lanes<A>(p.Dv, [&](int64_t d, int) { store_lanes<A>(sum + d, Vec<A>{}); });
  for (int64_t i = 0; i < p.P; ++i) {
    const A lse = lses[i * p.lse_part];
    if (lse == kNothing) continue;  // saw nothing
    const A weight = lse == most ? 1 : std::exp(lse - most);
    const U* part = reinterpret_cast<const U*>(parts) + i * p.part;
    const Vec<A> factor = broadcast(weight);
    total += weight;
    for_lanes<A>(p.Dv, [&](int64_t d, int count) {
      store_lanes<A>(sum + d, load_lanes<A>(sum + d) + factor * load_some<A>(part + d, count));
    });
  }
  const Vec<A> divisor = broadcast(total == 0 ? A{1} : total);
  U* out = reinterpret_cast<U*>(p.out.at(b, s, h));
  for_lanes<A>(p.Dv, [&](int64_t d, int count) {
    store_some<A>(out + d, load_lanes<A>(sum + d) / divisor, count);
  });
  static_cast<A*>(p.lse_out)[(b * p.H + h) * p.S + s] =
      total == 0 ? kNothing : most + std::log(total);
}

void merge(const Merge& p, int64_t begin, int64_t end) {
  with_float_type(p.out.dtype, [&](auto type) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t h = 0; h < p.H; ++h) merge_head<decltype(type)>(p, n / p.S, n % p.S, h);
  });
}

}  // namespace

extern const CacheKernels cache_kernels = {append, rotary, merge};

}  // namespace weft::attention::cpu::WEFT_CPU_LEVEL
