// Global memory; PTX ISA: ld, ld.global.nc, st, atom, red, fence.
#pragma once

#include <type_traits>

#include "gpu/global.h"
#include "gpu/ptx/base.h"

namespace weft::gpu {

namespace detail {

// A register type of B bytes, as nvcc's memory intrinsics take them.
template <size_t B>
struct Bits;
template <>
struct Bits<1> {
  using type = unsigned char;
};
template <>
struct Bits<2> {
  using type = unsigned short;
};
template <>
struct Bits<4> {
  using type = unsigned int;
};
template <>
struct Bits<8> {
  using type = uint2;
};
template <>
struct Bits<16> {
  using type = uint4;
};

// ld.global.nc: the path for data that nobody writes. 16 bytes leave no copy in L1, and bring 128
// bytes to L2.
WEFT_DEVICE uint4 load_constant(const uint4* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}
template <class R>
WEFT_DEVICE R load_constant(const R* p) {
  return __ldg(p);
}

template <Cache kCache, class V>
WEFT_DEVICE V load_piece(const void* p) {
  using R = typename Bits<sizeof(V)>::type;
  const R* from = static_cast<const R*>(p);
  R r;
  if constexpr (kCache == Cache::streaming)
    r = __ldcs(from);
  else if constexpr (kCache == Cache::read_only)
    r = load_constant(from);
  else
    r = *from;
  V v;
  __builtin_memcpy(&v, &r, sizeof v);
  return v;
}

template <Cache kCache, class V>
WEFT_DEVICE void store_piece(void* p, const V& v) {
  using R = typename Bits<sizeof(V)>::type;
  R r;
  __builtin_memcpy(&r, &v, sizeof r);
  if constexpr (kCache == Cache::streaming)
    __stcs(static_cast<R*>(p), r);
  else
    *static_cast<R*>(p) = r;
}

}  // namespace detail

template <int N, Cache kCache, class T>
WEFT_DEVICE Vec<T, N> load(const T* p) {
  using P = Piece<T, N>;
  if constexpr (P::kSize == N) {
    return detail::load_piece<kCache, P>(p);
  } else {
    Vec<T, N> v;
    for (int k = 0; k < N; k += P::kSize) {
      const P piece = detail::load_piece<kCache, P>(p + k);
      for (int j = 0; j < P::kSize; ++j) v[k + j] = piece[j];
    }
    return v;
  }
}

template <Cache kCache, class T>
WEFT_DEVICE T load(const T* p) {
  return detail::load_piece<kCache, T>(p);
}

template <Cache kCache, class T, int N>
WEFT_DEVICE void store(T* p, const Vec<T, N>& v) {
  static_assert(kCache != Cache::read_only);
  using P = Piece<T, N>;
  if constexpr (P::kSize == N) {
    detail::store_piece<kCache>(p, v);
  } else {
    for (int k = 0; k < N; k += P::kSize) {
      P piece;
      for (int j = 0; j < P::kSize; ++j) piece[j] = v[k + j];
      detail::store_piece<kCache>(p + k, piece);
    }
  }
}

template <Cache kCache, class T>
WEFT_DEVICE void store(T* p, T v) {
  static_assert(kCache != Cache::read_only);
  detail::store_piece<kCache>(p, v);
}

namespace detail {

// ld and st in one spelling ("acquire.gpu", …), of 4 or of 8 bytes.
#define WEFT_PTX_LOAD(how)                                                            \
  if constexpr (sizeof(T) == 4)                                                       \
    asm volatile("ld." how ".global.u32 %0, [%1];" : "=r"(word) : "l"(p) : "memory"); \
  else                                                                                \
    asm volatile("ld." how ".global.u64 %0, [%1];" : "=l"(pair) : "l"(p) : "memory")
#define WEFT_PTX_STORE(how)                                                         \
  if constexpr (sizeof(T) == 4)                                                     \
    asm volatile("st." how ".global.u32 [%0], %1;" ::"l"(p), "r"(word) : "memory"); \
  else                                                                              \
    asm volatile("st." how ".global.u64 [%0], %1;" ::"l"(p), "l"(pair) : "memory")

template <Scope kScope, bool kAcquire, class T>
WEFT_DEVICE T strong_load(const T* p) {
  static_assert(kScope != Scope::cluster);
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint32_t word = 0;
  uint64_t pair = 0;
  if constexpr (kAcquire && kScope == Scope::block) {
    WEFT_PTX_LOAD("acquire.cta");
  } else if constexpr (kAcquire && kScope == Scope::gpu) {
    WEFT_PTX_LOAD("acquire.gpu");
  } else if constexpr (kAcquire) {
    WEFT_PTX_LOAD("acquire.sys");
  } else if constexpr (kScope == Scope::block) {
    WEFT_PTX_LOAD("relaxed.cta");
  } else if constexpr (kScope == Scope::gpu) {
    WEFT_PTX_LOAD("relaxed.gpu");
  } else {
    WEFT_PTX_LOAD("relaxed.sys");
  }
  T v;
  if constexpr (sizeof(T) == 4)
    __builtin_memcpy(&v, &word, 4);
  else
    __builtin_memcpy(&v, &pair, 8);
  return v;
}

template <Scope kScope, bool kRelease, class T>
WEFT_DEVICE void strong_store(T* p, T v) {
  static_assert(kScope != Scope::cluster);
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint32_t word = 0;
  uint64_t pair = 0;
  if constexpr (sizeof(T) == 4)
    __builtin_memcpy(&word, &v, 4);
  else
    __builtin_memcpy(&pair, &v, 8);
  if constexpr (kRelease && kScope == Scope::block) {
    WEFT_PTX_STORE("release.cta");
  } else if constexpr (kRelease && kScope == Scope::gpu) {
    WEFT_PTX_STORE("release.gpu");
  } else if constexpr (kRelease) {
    WEFT_PTX_STORE("release.sys");
  } else if constexpr (kScope == Scope::block) {
    WEFT_PTX_STORE("relaxed.cta");
  } else if constexpr (kScope == Scope::gpu) {
    WEFT_PTX_STORE("relaxed.gpu");
  } else {
    WEFT_PTX_STORE("relaxed.sys");
  }
}
#undef WEFT_PTX_LOAD
#undef WEFT_PTX_STORE

}  // namespace detail

template <Scope kScope, class T>
WEFT_DEVICE T load_relaxed(const T* p) {
  return detail::strong_load<kScope, false>(p);
}
template <Scope kScope, class T>
WEFT_DEVICE T load_acquire(const T* p) {
  return detail::strong_load<kScope, true>(p);
}
template <Scope kScope, class T>
WEFT_DEVICE void store_relaxed(T* p, T v) {
  detail::strong_store<kScope, false>(p, v);
}
template <Scope kScope, class T>
WEFT_DEVICE void store_release(T* p, T v) {
  detail::strong_store<kScope, true>(p, v);
}

template <Scope kScope>
WEFT_DEVICE void fence() {
  static_assert(kScope != Scope::cluster);
  if constexpr (kScope == Scope::block)
    asm volatile("fence.acq_rel.cta;" ::: "memory");
  else if constexpr (kScope == Scope::gpu)
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  else
    asm volatile("fence.acq_rel.sys;" ::: "memory");
}

namespace detail {

// nvcc's atomics are relaxed. What an order adds are the fences around them: that is how ptxas
// carries the order out, too.
template <Scope kScope, Order kOrder, class F>
WEFT_DEVICE auto ordered(const F& atomic) {
  static_assert(kScope != Scope::cluster);
  if constexpr (kOrder == Order::release || kOrder == Order::acquire_release) fence<kScope>();
  const auto before = atomic();
  if constexpr (kOrder == Order::acquire || kOrder == Order::acquire_release) fence<kScope>();
  return before;
}

// uint64_t is `unsigned long`, which the intrinsics do not take.
template <class T>
using Atomic = std::conditional_t<std::is_same_v<T, uint64_t>, unsigned long long, T>;

#define WEFT_PTX_ATOMIC(name, ...)                           \
  [&] {                                                      \
    auto* at = reinterpret_cast<Atomic<T>*>(p);              \
    if constexpr (kScope == Scope::block)                    \
      return static_cast<T>(name##_block(at, __VA_ARGS__));  \
    else if constexpr (kScope == Scope::gpu)                 \
      return static_cast<T>(name(at, __VA_ARGS__));          \
    else                                                     \
      return static_cast<T>(name##_system(at, __VA_ARGS__)); \
  }
}  // namespace detail

template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_add(T* p, T v) {
  using detail::Atomic;
  return detail::ordered<kScope, kOrder>(WEFT_PTX_ATOMIC(atomicAdd, static_cast<Atomic<T>>(v)));
}
// The compiler turns an atomic whose result is not used into red.
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE void reduce_add(T* p, T v) {
  atomic_add<kScope, kOrder>(p, v);
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_max(T* p, T v) {
  using detail::Atomic;
  return detail::ordered<kScope, kOrder>(WEFT_PTX_ATOMIC(atomicMax, static_cast<Atomic<T>>(v)));
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_min(T* p, T v) {
  using detail::Atomic;
  return detail::ordered<kScope, kOrder>(WEFT_PTX_ATOMIC(atomicMin, static_cast<Atomic<T>>(v)));
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_exchange(T* p, T v) {
  using detail::Atomic;
  return detail::ordered<kScope, kOrder>(WEFT_PTX_ATOMIC(atomicExch, static_cast<Atomic<T>>(v)));
}
template <Scope kScope, Order kOrder, class T>
WEFT_DEVICE T atomic_compare_exchange(T* p, T expected, T v) {
  using detail::Atomic;
  return detail::ordered<kScope, kOrder>(
      WEFT_PTX_ATOMIC(atomicCAS, static_cast<Atomic<T>>(expected), static_cast<Atomic<T>>(v)));
}
#undef WEFT_PTX_ATOMIC

// PTX ISA: prefetch.
WEFT_DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

}  // namespace weft::gpu
