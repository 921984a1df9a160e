// Matrix products of a warpgroup; PTX ISA: Asynchronous Warpgroup Level Matrix Instructions.
#pragma once

#include "gpu/ptx/convert.h"
#include "gpu/ptx/shared.h"
#include "gpu/wgmma.h"

namespace weft::gpu {

// ---- PTX ISA: wgmma.fence, wgmma.commit_group, wgmma.wait_group
namespace detail {
// The compiler, too, takes these registers for changed here.
template <class T, int N>
WEFT_DEVICE void changed(WgmmaAccumulator<T, N>& d) {
  for (uint32_t i = 0; i < d.kSize; ++i) {
    if constexpr (std::is_same_v<T, float>)
      asm volatile("" : "+f"(d.data[i])::"memory");
    else
      asm volatile("" : "+r"(d.data[i])::"memory");
  }
}
template <class T>
WEFT_DEVICE void changed(FragmentA<T>& a) {
  for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a.words[i])::"memory");
}
}  // namespace detail

template <class... Registers>
WEFT_DEVICE void wgmma_fence(Registers&... registers) {
  (detail::each_of(registers, [](auto& r) { detail::changed(r); }), ...);
  WEFT_PTX_SM90A(asm volatile("wgmma.fence.sync.aligned;" :: : "memory"));
}
WEFT_DEVICE void wgmma_commit() {
  WEFT_PTX_SM90A(asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory"));
}
template <int kPending, class... Registers>
WEFT_DEVICE void wgmma_wait(Registers&... registers) {
  static_assert(kPending >= 0 && kPending <= 7);
  WEFT_PTX_SM90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory"));
  (detail::each_of(registers, [](auto& r) { detail::changed(r); }), ...);
}

// ---- PTX ISA: wgmma.mma_async. An accumulator of N columns is N / 2 operands of the instruction,
// so that each N has a text of its own. The macros make them of two tables.
// clang-format off

// f(0) c() f(1) c() … for the N / 2 registers, where c() is a comma.
#define WEFT_WGMMA_D8(f, c) f(0) c() f(1) c() f(2) c() f(3)
#define WEFT_WGMMA_D16(f, c) WEFT_WGMMA_D8(f, c) c() f(4) c() f(5) c() f(6) c() f(7)
#define WEFT_WGMMA_D24(f, c) WEFT_WGMMA_D16(f, c) c() f(8) c() f(9) c() f(10) c() f(11)
#define WEFT_WGMMA_D32(f, c) WEFT_WGMMA_D24(f, c) c() f(12) c() f(13) c() f(14) c() f(15)
#define WEFT_WGMMA_D40(f, c) WEFT_WGMMA_D32(f, c) c() f(16) c() f(17) c() f(18) c() f(19)
#define WEFT_WGMMA_D48(f, c) WEFT_WGMMA_D40(f, c) c() f(20) c() f(21) c() f(22) c() f(23)
#define WEFT_WGMMA_D56(f, c) WEFT_WGMMA_D48(f, c) c() f(24) c() f(25) c() f(26) c() f(27)
#define WEFT_WGMMA_D64(f, c) WEFT_WGMMA_D56(f, c) c() f(28) c() f(29) c() f(30) c() f(31)
#define WEFT_WGMMA_D72(f, c) WEFT_WGMMA_D64(f, c) c() f(32) c() f(33) c() f(34) c() f(35)
#define WEFT_WGMMA_D80(f, c) WEFT_WGMMA_D72(f, c) c() f(36) c() f(37) c() f(38) c() f(39)
#define WEFT_WGMMA_D88(f, c) WEFT_WGMMA_D80(f, c) c() f(40) c() f(41) c() f(42) c() f(43)
#define WEFT_WGMMA_D96(f, c) WEFT_WGMMA_D88(f, c) c() f(44) c() f(45) c() f(46) c() f(47)
#define WEFT_WGMMA_D104(f, c) WEFT_WGMMA_D96(f, c) c() f(48) c() f(49) c() f(50) c() f(51)
#define WEFT_WGMMA_D112(f, c) WEFT_WGMMA_D104(f, c) c() f(52) c() f(53) c() f(54) c() f(55)
#define WEFT_WGMMA_D120(f, c) WEFT_WGMMA_D112(f, c) c() f(56) c() f(57) c() f(58) c() f(59)
#define WEFT_WGMMA_D128(f, c) WEFT_WGMMA_D120(f, c) c() f(60) c() f(61) c() f(62) c() f(63)
#define WEFT_WGMMA_D136(f, c) WEFT_WGMMA_D128(f, c) c() f(64) c() f(65) c() f(66) c() f(67)
#define WEFT_WGMMA_D144(f, c) WEFT_WGMMA_D136(f, c) c() f(68) c() f(69) c() f(70) c() f(71)
#define WEFT_WGMMA_D152(f, c) WEFT_WGMMA_D144(f, c) c() f(72) c() f(73) c() f(74) c() f(75)
#define WEFT_WGMMA_D160(f, c) WEFT_WGMMA_D152(f, c) c() f(76) c() f(77) c() f(78) c() f(79)
#define WEFT_WGMMA_D168(f, c) WEFT_WGMMA_D160(f, c) c() f(80) c() f(81) c() f(82) c() f(83)
#define WEFT_WGMMA_D176(f, c) WEFT_WGMMA_D168(f, c) c() f(84) c() f(85) c() f(86) c() f(87)
#define WEFT_WGMMA_D184(f, c) WEFT_WGMMA_D176(f, c) c() f(88) c() f(89) c() f(90) c() f(91)
#define WEFT_WGMMA_D192(f, c) WEFT_WGMMA_D184(f, c) c() f(92) c() f(93) c() f(94) c() f(95)
#define WEFT_WGMMA_D200(f, c) WEFT_WGMMA_D192(f, c) c() f(96) c() f(97) c() f(98) c() f(99)
#define WEFT_WGMMA_D208(f, c) WEFT_WGMMA_D200(f, c) c() f(100) c() f(101) c() f(102) c() f(103)
#define WEFT_WGMMA_D216(f, c) WEFT_WGMMA_D208(f, c) c() f(104) c() f(105) c() f(106) c() f(107)
#define WEFT_WGMMA_D224(f, c) WEFT_WGMMA_D216(f, c) c() f(108) c() f(109) c() f(110) c() f(111)
#define WEFT_WGMMA_D232(f, c) WEFT_WGMMA_D224(f, c) c() f(112) c() f(113) c() f(114) c() f(115)
#define WEFT_WGMMA_D240(f, c) WEFT_WGMMA_D232(f, c) c() f(116) c() f(117) c() f(118) c() f(119)
#define WEFT_WGMMA_D248(f, c) WEFT_WGMMA_D240(f, c) c() f(120) c() f(121) c() f(122) c() f(123)
#define WEFT_WGMMA_D256(f, c) WEFT_WGMMA_D248(f, c) c() f(124) c() f(125) c() f(126) c() f(127)

// x(N, type, the numbers of the operands that follow those of D) for each N.
#define WEFT_WGMMA_EACH_N(x, type) \
  x(8, type, 4, 5, 6, 7, 8, 9, 10, 11) \
  x(16, type, 8, 9, 10, 11, 12, 13, 14, 15) \
  x(24, type, 12, 13, 14, 15, 16, 17, 18, 19) \
  x(32, type, 16, 17, 18, 19, 20, 21, 22, 23) \
  x(40, type, 20, 21, 22, 23, 24, 25, 26, 27) \
  x(48, type, 24, 25, 26, 27, 28, 29, 30, 31) \
  x(56, type, 28, 29, 30, 31, 32, 33, 34, 35) \
  x(64, type, 32, 33, 34, 35, 36, 37, 38, 39) \
  x(72, type, 36, 37, 38, 39, 40, 41, 42, 43) \
  x(80, type, 40, 41, 42, 43, 44, 45, 46, 47) \
  x(88, type, 44, 45, 46, 47, 48, 49, 50, 51) \
  x(96, type, 48, 49, 50, 51, 52, 53, 54, 55) \
  x(104, type, 52, 53, 54, 55, 56, 57, 58, 59) \
  x(112, type, 56, 57, 58, 59, 60, 61, 62, 63) \
  x(120, type, 60, 61, 62, 63, 64, 65, 66, 67) \
  x(128, type, 64, 65, 66, 67, 68, 69, 70, 71) \
  x(136, type, 68, 69, 70, 71, 72, 73, 74, 75) \
  x(144, type, 72, 73, 74, 75, 76, 77, 78, 79) \
  x(152, type, 76, 77, 78, 79, 80, 81, 82, 83) \
  x(160, type, 80, 81, 82, 83, 84, 85, 86, 87) \
  x(168, type, 84, 85, 86, 87, 88, 89, 90, 91) \
  x(176, type, 88, 89, 90, 91, 92, 93, 94, 95) \
  x(184, type, 92, 93, 94, 95, 96, 97, 98, 99) \
  x(192, type, 96, 97, 98, 99, 100, 101, 102, 103) \
  x(200, type, 100, 101, 102, 103, 104, 105, 106, 107) \
  x(208, type, 104, 105, 106, 107, 108, 109, 110, 111) \
  x(216, type, 108, 109, 110, 111, 112, 113, 114, 115) \
  x(224, type, 112, 113, 114, 115, 116, 117, 118, 119) \
  x(232, type, 116, 117, 118, 119, 120, 121, 122, 123) \
  x(240, type, 120, 121, 122, 123, 124, 125, 126, 127) \
  x(248, type, 124, 125, 126, 127, 128, 129, 130, 131) \
  x(256, type, 128, 129, 130, 131, 132, 133, 134, 135)

// clang-format on

#define WEFT_WGMMA_NAME(i) "%" #i
#define WEFT_WGMMA_NAMES_COMMA() ", "
#define WEFT_WGMMA_COMMA() ,
#define WEFT_WGMMA_F32(i) "+f"(d.data[i])
#define WEFT_WGMMA_S32(i) "+r"(d.data[i])

// One wgmma: `operands` are those behind D, `accumulate` is the number of the operand of that name.
#define WEFT_WGMMA(N, K, type, constraint, operands, accumulate, modifiers, ...)             \
  if constexpr (kN == N)                                                                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #accumulate                            \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N K type " {" WEFT_WGMMA_D##N(   \
                     WEFT_WGMMA_NAME, WEFT_WGMMA_NAMES_COMMA) "}, " operands ", p" modifiers \
                                                              ";\n}"                         \
                 : WEFT_WGMMA_D##N(constraint, WEFT_WGMMA_COMMA)                             \
                 : __VA_ARGS__);

// D, descriptors of A and B, accumulate, signs of A and B, transpositions of A and B
#define WEFT_WGMMA_SS16(N, type, a, b, p, sign, ta, tb, ...)                                \
  WEFT_WGMMA(N, "k16", type, WEFT_WGMMA_F32, "%" #a ", %" #b, p,                            \
             ", %" #sign ", 1, %" #ta ", %" #tb, "l"(desc_a), "l"(desc_b), "r"(accumulate), \
             "n"(kSign), "n"(kTransposeA), "n"(kTransposeB))
// D, registers of A, descriptor of B, accumulate, signs of A and B, transposition of B
#define WEFT_WGMMA_RS16(N, type, a0, a1, a2, a3, b, p, sign, tb)                                  \
  WEFT_WGMMA(N, "k16", type, WEFT_WGMMA_F32, "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b, p, \
             ", %" #sign ", 1, %" #tb, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b),   \
             "r"(accumulate), "n"(kSign), "n"(kTransposeB))
// The same for int8, which has neither signs nor transpositions.
#define WEFT_WGMMA_SS8(N, type, a, b, p, ...)                                                  \
  WEFT_WGMMA(N, "k32", type, WEFT_WGMMA_S32, "%" #a ", %" #b, p, "", "l"(desc_a), "l"(desc_b), \
             "r"(accumulate))
#define WEFT_WGMMA_RS8(N, type, a0, a1, a2, a3, b, p, ...)                                        \
  WEFT_WGMMA(N, "k32", type, WEFT_WGMMA_S32, "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b, p, \
             "", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b), "r"(accumulate))

namespace detail {

// One function for each element type and source of A.
#define WEFT_WGMMA_SS(T, D, arguments)                                                          \
  template <int kSign, int kTransposeA, int kTransposeB, int kN>                                \
  WEFT_DEVICE void wgmma_ss(T, [[maybe_unused]] WgmmaAccumulator<D, kN>& d,                     \
                            [[maybe_unused]] uint64_t desc_a, [[maybe_unused]] uint64_t desc_b, \
                            [[maybe_unused]] uint32_t accumulate) {                             \
    WEFT_PTX_SM90A(WEFT_WGMMA_EACH_N arguments);                                                \
  }
#define WEFT_WGMMA_RS(T, D, arguments)                                                            \
  template <int kSign, int kTransposeB, int kN>                                                   \
  WEFT_DEVICE void wgmma_rs(                                                                      \
      T, [[maybe_unused]] WgmmaAccumulator<D, kN>& d, [[maybe_unused]] const Vec<uint32_t, 4>& a, \
      [[maybe_unused]] uint64_t desc_b, [[maybe_unused]] uint32_t accumulate) {                   \
    WEFT_PTX_SM90A(WEFT_WGMMA_EACH_N arguments);                                                  \
  }
WEFT_WGMMA_SS(bf16, float, (WEFT_WGMMA_SS16, ".f32.bf16.bf16"))
WEFT_WGMMA_SS(f16, float, (WEFT_WGMMA_SS16, ".f32.f16.f16"))
WEFT_WGMMA_SS(int8_t, int32_t, (WEFT_WGMMA_SS8, ".s32.s8.s8"))
WEFT_WGMMA_RS(bf16, float, (WEFT_WGMMA_RS16, ".f32.bf16.bf16"))
WEFT_WGMMA_RS(f16, float, (WEFT_WGMMA_RS16, ".f32.f16.f16"))
WEFT_WGMMA_RS(int8_t, int32_t, (WEFT_WGMMA_RS8, ".s32.s8.s8"))

}  // namespace detail

#undef WEFT_WGMMA_SS
#undef WEFT_WGMMA_RS
#undef WEFT_WGMMA_SS16
#undef WEFT_WGMMA_RS16
#undef WEFT_WGMMA_SS8
#undef WEFT_WGMMA_RS8
#undef WEFT_WGMMA
#undef WEFT_WGMMA_EACH_N
#undef WEFT_WGMMA_NAME
#undef WEFT_WGMMA_NAMES_COMMA
#undef WEFT_WGMMA_COMMA
#undef WEFT_WGMMA_F32
#undef WEFT_WGMMA_S32

template <Sign kSign, class D, int N, class T, Major kMajorA, Major kMajorB>
WEFT_DEVICE void wgmma(WgmmaAccumulator<D, N>& d, MatrixDescriptor<T, kMajorA> a,
                       MatrixDescriptor<T, kMajorB> b, bool accumulate) {
  detail::check_wgmma<D, N, T, kSign, kMajorA, kMajorB>();
  detail::wgmma_ss<kSign == Sign::minus ? -1 : 1, kMajorA == Major::mn, kMajorB == Major::mn>(
      T{}, d, a.bits, b.bits, accumulate);
}
template <Sign kSign, class D, int N, class T, Major kMajorB>
WEFT_DEVICE void wgmma(WgmmaAccumulator<D, N>& d, const FragmentA<T>& a,
                       MatrixDescriptor<T, kMajorB> b, bool accumulate) {
  detail::check_wgmma<D, N, T, kSign, Major::k, kMajorB>();
  detail::wgmma_rs<kSign == Sign::minus ? -1 : 1, kMajorB == Major::mn>(T{}, d, a.words, b.bits,
                                                                        accumulate);
}

}  // namespace weft::gpu
