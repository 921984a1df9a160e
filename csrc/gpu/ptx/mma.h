// Matrix products of a warp; PTX ISA: mma, ldmatrix, stmatrix, movmatrix, cvt.
#pragma once

#include "gpu/mma.h"
#include "gpu/ptx/convert.h"
#include "gpu/ptx/shared.h"

namespace weft::gpu {

// ---- PTX ISA: ldmatrix
namespace detail {
#define WEFT_PTX_LDMATRIX(trans)                                                             \
  if constexpr (kMatrices == 1)                                                              \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                 : "=r"(words[0])                                                            \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  else if constexpr (kMatrices == 2)                                                         \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                 : "=r"(words[0]), "=r"(words[1])                                            \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  else                                                                                       \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])            \
                 : "r"(address)                                                              \
                 : "memory")
template <int kMatrices, bool kTransposed>
WEFT_DEVICE Vec<uint32_t, kMatrices> load_matrices(uint32_t address) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  Vec<uint32_t, kMatrices> words;
  if constexpr (kTransposed) {
    WEFT_PTX_LDMATRIX(".trans");
  } else {
    WEFT_PTX_LDMATRIX("");
  }
  return words;
}
#undef WEFT_PTX_LDMATRIX

// ---- PTX ISA: stmatrix
#define WEFT_PTX_STMATRIX(trans)                                                     \
  if constexpr (kMatrices == 1)                                                      \
    WEFT_PTX_SM90(asm volatile("stmatrix.sync.aligned.m8n8.x1" trans                 \
                               ".shared.b16 [%0], {%1};" ::"r"(address),             \
                               "r"(words[0]) : "memory"));                           \
  else if constexpr (kMatrices == 2)                                                 \
    WEFT_PTX_SM90(asm volatile("stmatrix.sync.aligned.m8n8.x2" trans                 \
                               ".shared.b16 [%0], {%1, %2};" ::"r"(address),         \
                               "r"(words[0]), "r"(words[1]) : "memory"));            \
  else                                                                               \
    WEFT_PTX_SM90(asm volatile("stmatrix.sync.aligned.m8n8.x4" trans                 \
                               ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), \
                               "r"(words[0]), "r"(words[1]), "r"(words[2]),          \
                               "r"(words[3]) : "memory"))
template <int kMatrices, bool kTransposed>
WEFT_DEVICE void store_matrices([[maybe_unused]] uint32_t address,
                                [[maybe_unused]] const Vec<uint32_t, kMatrices>& words) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  if constexpr (kTransposed) {
    WEFT_PTX_STMATRIX(".trans");
  } else {
    WEFT_PTX_STMATRIX("");
  }
}
#undef WEFT_PTX_STMATRIX

template <class T>
WEFT_DEVICE uint32_t address_of(Shared<T> x, uint32_t at) {
  return x.address() + at * static_cast<uint32_t>(sizeof(T));
}
}  // namespace detail

template <int kMatrices, class T>
WEFT_DEVICE Vec<uint32_t, kMatrices> ldmatrix(Shared<T> x, uint32_t at) {
  return detail::load_matrices<kMatrices, false>(detail::address_of(x, at));
}
template <int kMatrices, class T>
WEFT_DEVICE Vec<uint32_t, kMatrices> ldmatrix_transposed(Shared<T> x, uint32_t at) {
  return detail::load_matrices<kMatrices, true>(detail::address_of(x, at));
}
template <int kMatrices, class T>
WEFT_DEVICE void stmatrix(Shared<T> x, uint32_t at, const Vec<uint32_t, kMatrices>& words) {
  detail::store_matrices<kMatrices, false>(detail::address_of(x, at), words);
}
template <int kMatrices, class T>
WEFT_DEVICE void stmatrix_transposed(Shared<T> x, uint32_t at,
                                     const Vec<uint32_t, kMatrices>& words) {
  detail::store_matrices<kMatrices, true>(detail::address_of(x, at), words);
}

// ---- PTX ISA: movmatrix
WEFT_DEVICE uint32_t movmatrix(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// ---- PTX ISA: cvt
WEFT_DEVICE tf32 to_tf32(float x) {
  tf32 y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y.bits) : "f"(x));
  return y;
}

// ---- PTX ISA: Multiply-and-Accumulate Instruction: mma
#define WEFT_PTX_MMA(shape_and_types, constraint, c)                                    \
  asm volatile("mma.sync.aligned." shape_and_types                                      \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
               : constraint(c[0]), constraint(c[1]), constraint(c[2]), constraint(c[3]) \
               : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]),    \
                 "r"(b.words[0]), "r"(b.words[1]))
template <class D, class T>
WEFT_DEVICE void mma(FragmentC<D>& c, const FragmentA<T>& a, const FragmentB<T>& b) {
  if constexpr (std::is_same_v<T, int8_t>) {
    static_assert(std::is_same_v<D, int32_t>);
    WEFT_PTX_MMA("m16n8k32.row.col.s32.s8.s8.s32", "+r", c);
  } else if constexpr (std::is_same_v<D, f16>) {
    static_assert(std::is_same_v<T, f16>);
    uint32_t d[2];
    __builtin_memcpy(d, &c, sizeof d);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 "
        "{%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),
          "r"(b.words[1]));
    __builtin_memcpy(&c, d, sizeof d);
  } else {
    static_assert(std::is_same_v<D, float>);
    if constexpr (std::is_same_v<T, bf16>) {
      WEFT_PTX_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", "+f", c);
    } else if constexpr (std::is_same_v<T, f16>) {
      WEFT_PTX_MMA("m16n8k16.row.col.f32.f16.f16.f32", "+f", c);
    } else {
      static_assert(std::is_same_v<T, tf32>);
      WEFT_PTX_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", "+f", c);
    }
  }
}
#undef WEFT_PTX_MMA

}  // namespace weft::gpu
