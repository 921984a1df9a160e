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
// so that there is a text for each N. All are made of two tables.

// WEFT_WGMMA_D<N>(f, comma): f(0) comma() f(1) comma() … for the N / 2 registers.
#define WEFT_WGMMA_D8(f, comma) f(0) comma() f(1) comma() f(2) comma() f(3)
#define WEFT_WGMMA_D16(f, comma) \
  WEFT_WGMMA_D8(f, comma) comma() f(4) comma() f(5) comma() f(6) comma() f(7)
#define WEFT_WGMMA_D24(f, comma) \
  WEFT_WGMMA_D16(f, comma) comma() f(8) comma() f(9) comma() f(10) comma() f(11)
#define WEFT_WGMMA_D32(f, comma) \
  WEFT_WGMMA_D24(f, comma) comma() f(12) comma() f(13) comma() f(14) comma() f(15)
#define WEFT_WGMMA_D40(f, comma) \
  WEFT_WGMMA_D32(f, comma) comma() f(16) comma() f(17) comma() f(18) comma() f(19)
#define WEFT_WGMMA_D48(f, comma) \
  WEFT_WGMMA_D40(f, comma) comma() f(20) comma() f(21) comma() f(22) comma() f(23)
#define WEFT_WGMMA_D56(f, comma) \
  WEFT_WGMMA_D48(f, comma) comma() f(24) comma() f(25) comma() f(26) comma() f(27)
#define WEFT_WGMMA_D64(f, comma) \
  WEFT_WGMMA_D56(f, comma) comma() f(28) comma() f(29) comma() f(30) comma() f(31)
#define WEFT_WGMMA_D72(f, comma) \
  WEFT_WGMMA_D64(f, comma) comma() f(32) comma() f(33) comma() f(34) comma() f(35)
#define WEFT_WGMMA_D80(f, comma) \
  WEFT_WGMMA_D72(f, comma) comma() f(36) comma() f(37) comma() f(38) comma() f(39)
#define WEFT_WGMMA_D88(f, comma) \
  WEFT_WGMMA_D80(f, comma) comma() f(40) comma() f(41) comma() f(42) comma() f(43)
#define WEFT_WGMMA_D96(f, comma) \
  WEFT_WGMMA_D88(f, comma) comma() f(44) comma() f(45) comma() f(46) comma() f(47)
#define WEFT_WGMMA_D104(f, comma) \
  WEFT_WGMMA_D96(f, comma) comma() f(48) comma() f(49) comma() f(50) comma() f(51)
#define WEFT_WGMMA_D112(f, comma) \
  WEFT_WGMMA_D104(f, comma) comma() f(52) comma() f(53) comma() f(54) comma() f(55)
#define WEFT_WGMMA_D120(f, comma) \
  WEFT_WGMMA_D112(f, comma) comma() f(56) comma() f(57) comma() f(58) comma() f(59)
#define WEFT_WGMMA_D128(f, comma) \
  WEFT_WGMMA_D120(f, comma) comma() f(60) comma() f(61) comma() f(62) comma() f(63)
#define WEFT_WGMMA_D136(f, comma) \
  WEFT_WGMMA_D128(f, comma) comma() f(64) comma() f(65) comma() f(66) comma() f(67)
#define WEFT_WGMMA_D144(f, comma) \
  WEFT_WGMMA_D136(f, comma) comma() f(68) comma() f(69) comma() f(70) comma() f(71)
#define WEFT_WGMMA_D152(f, comma) \
  WEFT_WGMMA_D144(f, comma) comma() f(72) comma() f(73) comma() f(74) comma() f(75)
#define WEFT_WGMMA_D160(f, comma) \
  WEFT_WGMMA_D152(f, comma) comma() f(76) comma() f(77) comma() f(78) comma() f(79)
#define WEFT_WGMMA_D168(f, comma) \
  WEFT_WGMMA_D160(f, comma) comma() f(80) comma() f(81) comma() f(82) comma() f(83)
#define WEFT_WGMMA_D176(f, comma) \
  WEFT_WGMMA_D168(f, comma) comma() f(84) comma() f(85) comma() f(86) comma() f(87)
#define WEFT_WGMMA_D184(f, comma) \
  WEFT_WGMMA_D176(f, comma) comma() f(88) comma() f(89) comma() f(90) comma() f(91)
#define WEFT_WGMMA_D192(f, comma) \
  WEFT_WGMMA_D184(f, comma) comma() f(92) comma() f(93) comma() f(94) comma() f(95)
#define WEFT_WGMMA_D200(f, comma) \
  WEFT_WGMMA_D192(f, comma) comma() f(96) comma() f(97) comma() f(98) comma() f(99)
#define WEFT_WGMMA_D208(f, comma) \
  WEFT_WGMMA_D200(f, comma) comma() f(100) comma() f(101) comma() f(102) comma() f(103)
#define WEFT_WGMMA_D216(f, comma) \
  WEFT_WGMMA_D208(f, comma) comma() f(104) comma() f(105) comma() f(106) comma() f(107)
#define WEFT_WGMMA_D224(f, comma) \
  WEFT_WGMMA_D216(f, comma) comma() f(108) comma() f(109) comma() f(110) comma() f(111)
#define WEFT_WGMMA_D232(f, comma) \
  WEFT_WGMMA_D224(f, comma) comma() f(112) comma() f(113) comma() f(114) comma() f(115)
#define WEFT_WGMMA_D240(f, comma) \
  WEFT_WGMMA_D232(f, comma) comma() f(116) comma() f(117) comma() f(118) comma() f(119)
#define WEFT_WGMMA_D248(f, comma) \
  WEFT_WGMMA_D240(f, comma) comma() f(120) comma() f(121) comma() f(122) comma() f(123)
#define WEFT_WGMMA_D256(f, comma) \
  WEFT_WGMMA_D248(f, comma) comma() f(124) comma() f(125) comma() f(126) comma() f(127)

// x(N, type, and the numbers of the operands that follow the N / 2 of D) for each N. This and the
// macros below are undefined at the end of the page.
#define WEFT_WGMMA_WIDTHS(x, type)                                                                \
  x(8, type, 4, 5, 6, 7, 8, 9, 10, 11) x(16, type, 8, 9, 10, 11, 12, 13, 14, 15) x(               \
      24, type, 12, 13, 14, 15, 16, 17, 18, 19) x(32, type, 16, 17, 18, 19, 20, 21, 22, 23)       \
      x(40, type, 20, 21, 22, 23, 24, 25, 26, 27) x(48, type, 24, 25, 26, 27, 28, 29, 30, 31) x(  \
          56, type, 28, 29, 30, 31, 32, 33, 34, 35) x(64, type, 32, 33, 34, 35, 36, 37, 38, 39)   \
          x(72, type, 36, 37, 38, 39, 40, 41, 42, 43) x(80, type, 40, 41, 42, 43, 44, 45, 46, 47) \
              x(88, type, 44, 45, 46, 47, 48, 49, 50, 51) x(                                      \
                  96, type, 48, 49, 50, 51, 52, 53, 54, 55) x(104, type, 52, 53, 54, 55, 56,      \
                                                              57, 58, 59)                         \
                  x(112, type, 56, 57, 58, 59, 60, 61, 62, 63) x(                                 \
                      120, type, 60, 61, 62, 63, 64, 65, 66,                                      \
                      67) x(128, type, 64, 65, 66, 67, 68, 69, 70, 71)                            \
                      x(136, type, 68, 69, 70, 71, 72, 73, 74, 75) x(                             \
                          144, type, 72, 73, 74, 75, 76, 77, 78,                                  \
                          79) x(152, type, 76, 77, 78, 79, 80, 81, 82, 83)                        \
                          x(160, type, 80, 81, 82, 83, 84, 85, 86, 87) x(                         \
                              168, type, 84, 85, 86, 87, 88, 89, 90,                              \
                              91) x(176, type, 88, 89, 90, 91, 92, 93, 94, 95)                    \
                              x(184, type, 92, 93, 94, 95, 96, 97, 98,                            \
                                99) x(192, type, 96, 97, 98, 99, 100, 101, 102,                   \
                                      103) x(200, type, 100, 101, 102, 103, 104, 105, 106, 107)   \
                                  x(208, type, 104, 105, 106, 107, 108, 109, 110,                 \
                                    111) x(216, type, 108, 109, 110, 111, 112, 113, 114, 115)     \
                                      x(224, type, 112, 113, 114, 115, 116, 117, 118,             \
                                        119) x(232, type, 116, 117, 118, 119, 120, 121, 122, 123) \
                                          x(240, type, 120, 121, 122, 123, 124, 125, 126, 127) x( \
                                              248, type, 124, 125, 126, 127, 128, 129, 130, 131)  \
                                              x(256, type, 128, 129, 130, 131, 132, 133, 134, 135)

#define WEFT_WGMMA_NAME(i) "%" #i
#define WEFT_WGMMA_NAMES_COMMA() ", "
#define WEFT_WGMMA_COMMA() ,
#define WEFT_WGMMA_F32(i) "+f"(d.data[i])
#define WEFT_WGMMA_S32(i) "+r"(d.data[i])

// One wgmma: `operands` are those behind D, `accumulate` the number of the operand with that name.
#define WEFT_WGMMA(N, K, type, register, operands, accumulate, modifiers, ...)               \
  if constexpr (kN == N)                                                                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #accumulate                            \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N K type " {" WEFT_WGMMA_D##N(   \
                     WEFT_WGMMA_NAME, WEFT_WGMMA_NAMES_COMMA) "}, " operands ", p" modifiers \
                                                              ";\n}"                         \
                 : WEFT_WGMMA_D##N(register, WEFT_WGMMA_COMMA)                               \
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
    WEFT_PTX_SM90A(WEFT_WGMMA_WIDTHS arguments);                                                \
  }
#define WEFT_WGMMA_RS(T, D, arguments)                                                            \
  template <int kSign, int kTransposeB, int kN>                                                   \
  WEFT_DEVICE void wgmma_rs(                                                                      \
      T, [[maybe_unused]] WgmmaAccumulator<D, kN>& d, [[maybe_unused]] const Vec<uint32_t, 4>& a, \
      [[maybe_unused]] uint64_t desc_b, [[maybe_unused]] uint32_t accumulate) {                   \
    WEFT_PTX_SM90A(WEFT_WGMMA_WIDTHS arguments);                                                  \
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
#undef WEFT_WGMMA_WIDTHS
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
