// The arithmetic of a collective (compiled once per level):
//
//   reduce       y[i] = round(⊕ x_r[i]), ⊕ over the ranks in order, in fp32 (fp64 for fp64)
//   quantise     s = max |x| / 127 over a group, q[i] = rne(x[i] / s)
//   reduce_int8  y[i] = round(⊕ s_r · q_r[i])
//
// A pair of vectors at a time: W loads, W - 1 additions, a store. W + 1 words move for each result,
// the peers' out of shared memory that they have just written: what bounds it is how fast one
// core's cache is read from another. An average multiplies by 1 / W where that is exact, and
// divides elsewhere.
#include "comm/cpu/kernels.h"

#include "cpu/vec.h"

namespace weft::comm::cpu::WEFT_CPU_LEVEL {

using namespace ::weft::cpu::WEFT_CPU_LEVEL;

namespace {

// torch's maximum: a NaN stays.
template <class A>
inline Vec<A> larger(Vec<A> a, Vec<A> b) {
  return a > b ? a : (a != a ? a : b);
}

template <class A>
struct Average {
  explicit Average(int world)
      : exact((world & (world - 1)) == 0),
        by(both<A>(exact ? A(1) / static_cast<A>(world) : static_cast<A>(world))) {}
  Pair<A> operator()(Pair<A> sum) const { return exact ? sum * by : sum / by; }

  bool exact;
  Pair<A> by;
};

template <Reduction kReduction, class A>
inline Pair<A> combine(Pair<A> a, Pair<A> b) {
  if constexpr (kReduction == Reduction::max)
    return {larger<A>(a.lo, b.lo), larger<A>(a.hi, b.hi)};
  else
    return a + b;
}

template <class F>
inline void with_reduction(Reduction reduction, F&& f) {
  switch (reduction) {
    case Reduction::sum:
      return f(std::integral_constant<Reduction, Reduction::sum>{});
    case Reduction::avg:
      return f(std::integral_constant<Reduction, Reduction::avg>{});
    case Reduction::max:
      return f(std::integral_constant<Reduction, Reduction::max>{});
  }
}

// kWorld: known when it is compiled, so that the loop over the ranks unrolls; 0: it is not.
template <class X, Reduction kReduction, int kWorld>
void reduce_world(const X* const* sources, int world, X* y, X* also, int64_t n, bool stream) {
  using L = Lanes<X>;
  using A = typename L::A;
  const Average<A> average(world);
  const int count = kWorld ? kWorld : world;
  for_pairs<X>(0, n, [&](int64_t i, auto part) {
    Pair<A> sum = L::load(sources[0] + i, part);
    for (int r = 1; r < count; ++r) sum = combine<kReduction>(sum, L::load(sources[r] + i, part));
    if constexpr (kReduction == Reduction::avg) sum = average(sum);
    if (also) L::store(also + i, sum, part);
    L::store(y + i, sum, part, stream);
  });
}

template <class X, Reduction kReduction>
void reduce_typed(const void* const* sources, int world, void* y, void* also, int64_t n,
                  bool stream) {
  const X* const* x = reinterpret_cast<const X* const*>(sources);
  X *to = static_cast<X*>(y), *second = static_cast<X*>(also);
  stream = stream && reinterpret_cast<uintptr_t>(y) % kVecBytes == 0;
  switch (world) {
    case 2:
      return reduce_world<X, kReduction, 2>(x, world, to, second, n, stream);
    case 4:
      return reduce_world<X, kReduction, 4>(x, world, to, second, n, stream);
    default:
      return reduce_world<X, kReduction, 0>(x, world, to, second, n, stream);
  }
}

void reduce_ranks(DType dtype, Reduction reduction, const void* const* sources, int world, void* y,
                  void* also, int64_t n, bool stream) {
  with_float_type(dtype, [&](auto type) {
    with_reduction(reduction, [&](auto kind) {
      reduce_typed<decltype(type), decltype(kind)::value>(sources, world, y, also, n, stream);
    });
  });
  if (stream) stream_fence();
}

// ---- int8

template <class X>
void quantise_typed(const X* x, int64_t n, int64_t group, int8_t* q, float* scales) {
  using L = Lanes<X>;
  using A = typename L::A;
  for (int64_t begin = 0; begin < n; begin += group) {
    const int64_t end = begin + group < n ? begin + group : n;
    Pair<A> most = both<A>(0);
    for_pairs<X>(begin, end, [&](int64_t i, auto part) {
      most = pair_magnitude_max(most, L::load(x + i, part));
    });
    // Magnitudes order like the integers that their bits spell, NaN above all.
    using Bits = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
    const auto max = [](auto a, auto b) { return a > b ? a : b; };
    const Bits bits = max(reduce<Bits>(reinterpret_cast<Vec<Bits>>(most.lo), max),
                          reduce<Bits>(reinterpret_cast<Vec<Bits>>(most.hi), max));
    A top;
    std::memcpy(&top, &bits, sizeof top);
    const float scale = static_cast<float>(top / 127);
    const bool finite = scale - scale == 0;
    scales[begin / group] = finite ? scale : scale - scale;
    const A inverse = finite && scale > 0 ? A(1) / static_cast<A>(scale) : A(0);
    // Subnormal scales have no finite inverse that serves: such a group counts as zeros.
    const bool usable = inverse - inverse == 0;
    if (!usable) scales[begin / group] = 0;
    for_pairs<X>(begin, end, [&](int64_t i, auto part) {
      const Pair<A> v = finite && usable ? L::load(x + i, part) : both<A>(0);
      L::store_int8(q + i, v, both<A>(inverse), 0, part);
    });
  }
}

void quantise(DType dtype, const void* x, int64_t n, int64_t group, int8_t* q, float* scales) {
  with_float_type(dtype, [&](auto type) {
    quantise_typed(static_cast<const decltype(type)*>(x), n, group, q, scales);
  });
}

// Vector by vector in memory's order. The last may read behind q's end, which is inside its slot.
template <class X, Reduction kReduction>
void reduce_int8_typed(const Quantised* sources, int world, X* y, int64_t n, int64_t group) {
  using A = acc_t<X>;
  constexpr int step = kLanes<A>;
  const Average<A> average(world);
  for (int64_t i = 0; i < n; i += step) {
    const auto value = [&](int r) {
      const Vec<A> scale = broadcast(static_cast<A>(sources[r].scales[i / group]));
      return Pair<A>{load_lanes<A>(sources[r].q + i) * scale, {}};
    };
    Pair<A> sum = value(0);
    for (int r = 1; r < world; ++r) sum = combine<kReduction>(sum, value(r));
    if constexpr (kReduction == Reduction::avg) sum = average(sum);
    if (i + step <= n) {
      store_lanes<A>(y + i, sum.lo);
    } else {
      X whole[step];
      store_lanes<A>(whole, sum.lo);
      for (int64_t j = i; j < n; ++j) y[j] = whole[j - i];
    }
  }
}

void reduce_int8(DType dtype, Reduction reduction, const Quantised* sources, int world, void* y,
                 int64_t n, int64_t group) {
  with_float_type(dtype, [&](auto type) {
    with_reduction(reduction, [&](auto kind) {
      reduce_int8_typed<decltype(type), decltype(kind)::value>(
          sources, world, static_cast<decltype(type)*>(y), n, group);
    });
  });
}

}  // namespace

extern const Kernels kernels = {reduce_ranks, quantise, reduce_int8};

}  // namespace weft::comm::cpu::WEFT_CPU_LEVEL
