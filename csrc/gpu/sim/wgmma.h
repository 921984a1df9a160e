// Matrix products of a warpgroup in the simulator; wgmma.cpp makes them.
#pragma once

#include "gpu/sim/engine.h"
#include "gpu/wgmma.h"

namespace weft::gpu {

namespace sim {

// Registers of a thread: an accumulator, or an A.
struct Registers {
  void* at;
  uint32_t bytes;
};

enum class WgmmaType : uint8_t { bf16, f16, i8 };

// A wgmma as one thread calls it.
struct WgmmaCall {
  Registers d;
  uint32_t n;
  WgmmaType type;
  bool minus, accumulate;
  Registers a;  // null: in shared memory
  uint64_t desc_a, desc_b;
  Major major_a, major_b;
};
void wgmma(WgmmaCall& call);
void wgmma_fence(const Registers* registers, size_t count);
void wgmma_commit();
void wgmma_wait(uint32_t pending, const Registers* registers, size_t count);

}  // namespace sim

namespace detail {

template <class R>
constexpr size_t registers_in() {
  if constexpr (std::is_array_v<R>)
    return std::extent_v<R> * registers_in<std::remove_extent_t<R>>();
  else
    return 1;
}

// f(all of them, how many)
template <class F, class... R>
WEFT_DEVICE void with_registers(const F& f, R&... registers) {
  constexpr size_t kCount = (registers_in<R>() + ... + 0);
  sim::Registers all[kCount + 1];
  [[maybe_unused]] size_t i = 0;
  (each_of(registers, [&](auto& r) { all[i++] = {&r, sizeof r}; }), ...);
  f(all, kCount);
}

template <class T>
constexpr sim::WgmmaType kWgmmaType = std::is_same_v<T, bf16>  ? sim::WgmmaType::bf16
                                      : std::is_same_v<T, f16> ? sim::WgmmaType::f16
                                                               : sim::WgmmaType::i8;

}  // namespace detail

template <Sign kSign, class D, int N, class T, Major kMajorA, Major kMajorB>
WEFT_DEVICE void wgmma(WgmmaAccumulator<D, N>& d, MatrixDescriptor<T, kMajorA> a,
                       MatrixDescriptor<T, kMajorB> b, bool accumulate) {
  detail::check_wgmma<D, N, T, kSign, kMajorA, kMajorB>();
  sim::WgmmaCall call{{&d, sizeof d},
                      N,
                      detail::kWgmmaType<T>,
                      kSign == Sign::minus,
                      accumulate,
                      {nullptr, 0},
                      a.bits,
                      b.bits,
                      kMajorA,
                      kMajorB};
  sim::wgmma(call);
}
template <Sign kSign, class D, int N, class T, Major kMajorB>
WEFT_DEVICE void wgmma(WgmmaAccumulator<D, N>& d, const FragmentA<T>& a,
                       MatrixDescriptor<T, kMajorB> b, bool accumulate) {
  detail::check_wgmma<D, N, T, kSign, Major::k, kMajorB>();
  sim::WgmmaCall call{{&d, sizeof d},
                      N,
                      detail::kWgmmaType<T>,
                      kSign == Sign::minus,
                      accumulate,
                      {const_cast<FragmentA<T>*>(&a), sizeof a},
                      0,
                      b.bits,
                      Major::k,
                      kMajorB};
  sim::wgmma(call);
}

template <class... Registers>
WEFT_DEVICE void wgmma_fence(Registers&... registers) {
  detail::with_registers(
      [](const sim::Registers* all, size_t count) { sim::wgmma_fence(all, count); }, registers...);
}
WEFT_DEVICE void wgmma_commit() { sim::wgmma_commit(); }
template <int kPending, class... Registers>
WEFT_DEVICE void wgmma_wait(Registers&... registers) {
  static_assert(kPending >= 0 && kPending <= 7);
  detail::with_registers(
      [](const sim::Registers* all, size_t count) { sim::wgmma_wait(kPending, all, count); },
      registers...);
}

}  // namespace weft::gpu
