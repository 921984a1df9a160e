// What forward and backward share on one ISA level: reading and writing by run-time dtype, and sums
// over a row.
#pragma once

#include "cpu/dropout.h"
#include "cpu/vec.h"
#include "norm/cpu/kernels.h"

namespace weft::norm::cpu::WEFT_CPU_LEVEL {

using namespace ::weft::cpu::WEFT_CPU_LEVEL;

template <class X>
constexpr DType kDType = std::is_same_v<X, double> ? DType::f64
                         : std::is_same_v<X, bf16> ? DType::bf16
                         : std::is_same_v<X, f16>  ? DType::f16
                                                   : DType::f32;

// A pair of a tensor whose dtype is known at run time only. The branches go the same way for a
// whole call, but a dozen of them per pair is as much work as the arithmetic: so loops come twice,
// for the common case and for any. A row's own dtype comes first, then float32 (mixed precision),
// the rest out of line.
template <class X, class Part>
[[gnu::noinline]] Pair<acc_t<X>> load_other(const void* data, DType dtype, int64_t i, Part part) {
  return with_float_type(dtype, [&](auto type) {
    return Lanes<X>::load(static_cast<const decltype(type)*>(data) + i, part);
  });
}
template <class X, class Part>
[[gnu::noinline]] void store_other(void* data, DType dtype, int64_t i, Pair<acc_t<X>> v,
                                   Part part) {
  with_float_type(
      dtype, [&](auto type) { Lanes<X>::store(static_cast<decltype(type)*>(data) + i, v, part); });
}

// A row of a tensor to be read.
struct Input {
  const char* data = nullptr;
  DType dtype = DType::f32;

  Input() = default;
  Input(const Rows& rows, int64_t n) : data(rows ? rows.row(n) : nullptr), dtype(rows.dtype) {}
  Input(const Channels& c, int64_t n, int64_t C) : dtype(c.dtype) {
    if (c)
      data = static_cast<const char*>(c.data) +
             n % c.heads * C * static_cast<int64_t>(size_of(c.dtype));
  }
  explicit operator bool() const { return data != nullptr; }
};

// kCommon promises that the dtype is X's own or float32, which leaves one branch.
template <class X, bool kCommon = false, class Part>
WEFT_INLINE Pair<acc_t<X>> load(const Input& in, int64_t i, Part part) {
  if (in.dtype == kDType<X>) return Lanes<X>::load(reinterpret_cast<const X*>(in.data) + i, part);
  if (kCommon || in.dtype == DType::f32)
    return Lanes<X>::load(reinterpret_cast<const float*>(in.data) + i, part);
  return load_other<X>(in.data, in.dtype, i, part);
}
// The promise, for a tensor that may be absent.
template <class X, class Tensor>
bool is_common(const Tensor& t) {
  return !t || t.dtype == kDType<X> || t.dtype == DType::f32;
}
template <class X, class Tensor>
bool is_own(const Tensor& t) {
  return !t || t.dtype == kDType<X>;
}

// A row of a tensor to be written.
struct Output {
  char* data = nullptr;
  DType dtype = DType::f32;
  bool stream = false;

  Output() = default;
  Output(const Rows& rows, int64_t n, bool want_stream)
      : data(rows ? rows.row(n) : nullptr), dtype(rows.dtype) {
    stream = want_stream && reinterpret_cast<uintptr_t>(data) % kVecBytes == 0;
  }
  explicit operator bool() const { return data != nullptr; }
};

// kOwn promises X's own dtype.
template <class X, bool kOwn = false, class Part>
WEFT_INLINE void store(const Output& out, int64_t i, Pair<acc_t<X>> v, Part part) {
  if (kOwn || out.dtype == kDType<X>)
    return Lanes<X>::store(reinterpret_cast<X*>(out.data) + i, v, part, out.stream);
  if (out.dtype == DType::f32)
    return Lanes<X>::store(reinterpret_cast<float*>(out.data) + i, v, part, out.stream);
  store_other<X>(out.data, out.dtype, i, v, part);
}

// v as a tensor of that dtype holds it.
template <class X>
[[gnu::noinline]] Pair<acc_t<X>> rounded_other(DType dtype, Pair<acc_t<X>> v) {
  return with_float_type(dtype,
                         [&](auto type) { return Lanes<X>::template rounded<decltype(type)>(v); });
}
template <class X>
WEFT_INLINE Pair<acc_t<X>> rounded(DType dtype, Pair<acc_t<X>> v) {
  if (dtype == kDType<X>) return Lanes<X>::template rounded<X>(v);
  if (dtype == kDType<acc_t<X>>) return v;
  return rounded_other<X>(dtype, v);
}

// Two sums over columns at once: f(sums, i, part) adds the terms of a pair of columns. Lanes would pile
// up rounding errors, and always the same one where a row is constant: so no accumulator takes more
// than kInner terms before it is added to the next, and no more than kSumPairs pairs go by before
// that one is added to a double. Each sum has two accumulators, or the latency of an addition would
// set the pace.
template <class A>
struct Two {
  Pair<A> first, second;

  WEFT_INLINE void add(Pair<A> a, Pair<A> b) {
    first = first + a;
    second = second + b;
  }
};
template <class X>
class Sum {
 public:
  using A = acc_t<X>;
  static constexpr int64_t kStep = Lanes<X>::kPair, kInner = 16;

  template <class F>
  WEFT_INLINE void over(int64_t begin, int64_t end, const F& f) {
    for (int64_t c = begin; c < end; c += kSumPairs * kStep)
      block(c, c + kSumPairs * kStep < end ? c + kSumPairs * kStep : end, f);
  }
  double first() const { return first_; }
  double second() const { return second_; }

 private:
  template <class F>
  WEFT_INLINE void block(int64_t begin, int64_t end, const F& f) {
    Two<A> total = zero();
    int64_t i = begin;
    while (i < end) {
      Two<A> even = zero(), odd = zero();
      const int64_t stop = i + 2 * kInner * kStep < end ? i + 2 * kInner * kStep : end;
      for (; i + 2 * kStep <= stop; i += 2 * kStep) {
        f(even, i, Full{});
        f(odd, i + kStep, Full{});
      }
      for_pairs<X>(i, stop, [&](int64_t j, auto part) { f(even, j, part); });
      i = stop;
      even.add(odd.first, odd.second);
      total.add(even.first, even.second);
    }
    first_ += static_cast<double>(pair_sum(total.first));
    second_ += static_cast<double>(pair_sum(total.second));
  }
  static Two<A> zero() { return {both<A>(0), both<A>(0)}; }

  double first_ = 0, second_ = 0;
};

template <class A>
inline A read_scalar(const PerRow& v, int64_t n, A absent) {
  if (!v) return absent;
  return with_float_type(v.dtype, [&](auto type) {
    return static_cast<A>(widen(static_cast<const decltype(type)*>(v.data)[n]));
  });
}
template <class A>
inline void write_scalar(const PerRow& v, int64_t n, double value) {
  if (v) static_cast<A*>(v.data)[n] = static_cast<A>(value);
}

}  // namespace weft::norm::cpu::WEFT_CPU_LEVEL
