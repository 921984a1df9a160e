// Multicast memory; PTX ISA: multimem.ld_reduce, multimem.st, multimem.red,
// fence.proxy.alias.
#pragma once

#include <type_traits>

#include "gpu/multimem.h"
#include "gpu/ptx/global.h"

namespace weft::gpu {

#define WEFT_PTX_LOAD_ADD(type)                                               \
  WEFT_PTX_SM90(asm volatile("multimem.ld_reduce.relaxed.sys.global.add" type \
                             " {%0, %1, %2, %3}, [%4];" : "=r"(r.x),          \
                             "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p) : "memory"))
template <class T>
WEFT_DEVICE Vec<T, kVecSize<T>> multimem_load_add([[maybe_unused]] const T* p) {
  uint4 r{};
  if constexpr (std::is_same_v<T, float>) {
    WEFT_PTX_SM90(asm volatile(
        "{\n.reg .f32 f<4>;\n"
        "multimem.ld_reduce.relaxed.sys.global.add.v4.f32 {f0, f1, f2, f3}, [%4];\n"
        "mov.b32 %0, f0;\nmov.b32 %1, f1;\nmov.b32 %2, f2;\nmov.b32 %3, f3;\n}" : "=r"(r.x),
        "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p) : "memory"));
  } else if constexpr (std::is_same_v<T, bf16>) {
    WEFT_PTX_LOAD_ADD(".acc::f32.v4.bf16x2");
  } else {
    static_assert(std::is_same_v<T, f16>);
    WEFT_PTX_LOAD_ADD(".acc::f32.v4.f16x2");
  }
  Vec<T, kVecSize<T>> v;
  __builtin_memcpy(&v, &r, sizeof v);
  return v;
}
#undef WEFT_PTX_LOAD_ADD

// The bits go as they are, whatever their type.
template <class T>
WEFT_DEVICE void multimem_store([[maybe_unused]] T* p, const Vec<T, kVecSize<T>>& v) {
  float4 r;
  __builtin_memcpy(&r, &v, sizeof r);
  WEFT_PTX_SM90(
      asm volatile("multimem.st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p),
                   "f"(r.x), "f"(r.y), "f"(r.z), "f"(r.w) : "memory"));
}

template <Order kOrder>
WEFT_DEVICE void multimem_add([[maybe_unused]] uint32_t* p, [[maybe_unused]] uint32_t v) {
  static_assert(kOrder == Order::relaxed || kOrder == Order::release);
  if constexpr (kOrder == Order::release)
    WEFT_PTX_SM90(asm volatile("multimem.red.release.sys.global.add.u32 [%0], %1;" ::"l"(p),
                               "r"(v) : "memory"));
  else
    WEFT_PTX_SM90(asm volatile("multimem.red.relaxed.sys.global.add.u32 [%0], %1;" ::"l"(p),
                               "r"(v) : "memory"));
}

WEFT_DEVICE void fence_alias() { asm volatile("fence.proxy.alias;" ::: "memory"); }

}  // namespace weft::gpu
