// The loops behind probes.h, compiled once per level.
//
// Arithmetic: kChains independent accumulators, more than latency × units of any core so far (4
// cycles × 2), and few enough that they stay in the 16 registers of AVX2. No sum becomes
// denormal or infinite.

#include "cpu/probes.h"
#include "cpu/vec.h"

namespace weft::cpu::WEFT_CPU_LEVEL {
namespace {

constexpr int kChains = 12;

// Makes the compiler believe that a value is used, or has come from elsewhere.
template <class V>
inline void keep(V& value) {
#if defined(__x86_64__)
  __asm__ volatile("" : "+v"(value));
#elif defined(__aarch64__)
  __asm__ volatile("" : "+w"(value));
#else
  __asm__ volatile("" : "+m"(value));
#endif
}

// Runs sum = step(sum, a, b) on all chains. Inputs are opaque to the compiler, and every sum is
// used at the end.
template <class Sum, class In, class Step>
inline void chains(int64_t iterations, In a, In b, Step step) {
  Sum sum[kChains] = {};
  for (Sum& s : sum) keep(s);  // else they are all the same chain
  keep(a);
  keep(b);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sum[c] = step(sum[c], a, b);
  }
  for (Sum& s : sum) keep(s);
}

void fp32(int64_t iterations) {
  using V = Vec<float>;
  chains<V>(iterations, broadcast(0.5f), broadcast(1.0f), [](V s, V a, V b) { return s * a + b; });
}

#if defined(__AVX512BF16__)
void bf16_dot(int64_t iterations) {
  const __m512bh half = (__m512bh)_mm512_set1_epi16(0x3f00);
  chains<__m512>(iterations, half, half,
                 [](__m512 s, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(s, a, b); });
}
#endif
#if defined(__AVX512VNNI__)
void int8_dot(int64_t iterations) {
  const __m512i one = _mm512_set1_epi8(1);
  chains<__m512i>(iterations, one, one,
                  [](__m512i s, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(s, a, b); });
}
#endif

using Word = Vec<uint32_t>;
constexpr size_t kStride = 8;  // vectors in flight, in order of address

void read(const void* from, size_t bytes) {
  const Word* p = static_cast<const Word*>(from);
  Word sum[kStride] = {};
  for (const Word* end = p + bytes / sizeof(Word); p != end; p += kStride) {
#pragma GCC unroll 8
    for (size_t i = 0; i < kStride; ++i) sum[i] ^= p[i];
  }
  for (Word& s : sum) keep(s);
}

void copy(void* to, const void* from, size_t bytes) {
  const Word* p = static_cast<const Word*>(from);
  Word* q = static_cast<Word*>(to);
  for (const Word* end = p + bytes / sizeof(Word); p != end; p += kStride, q += kStride) {
#pragma GCC unroll 8
    for (size_t i = 0; i < kStride; ++i) write(q + i, p[i], /*stream=*/true);
  }
  stream_fence();
}

void fill(void* to, size_t bytes) {
  Word* q = static_cast<Word*>(to);
  Word ones = ~Word{};
  for (Word* end = q + bytes / sizeof(Word); q != end; ++q) {
    keep(ones);  // else this becomes a call of memset, whose stores are its own choice
    *q = ones;
  }
}

}  // namespace

extern const ProbeLoops probe_loops;
const ProbeLoops probe_loops = {
    .fp32 = {fp32, 2.0 * kChains * kLanes<float>},
#if defined(__AVX512BF16__)
    .bf16 = {bf16_dot, 2.0 * kChains * 32},
#else
    .bf16 = {},
#endif
#if defined(__AVX512VNNI__)
    .int8 = {int8_dot, 2.0 * kChains * 64},
#else
    .int8 = {},
#endif
    .read = read,
    .copy = copy,
    .fill = fill,
};

}  // namespace weft::cpu::WEFT_CPU_LEVEL
