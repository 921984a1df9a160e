// Asynchronous copies and mbarriers; PTX ISA: cp.async, mbarrier, cp.async.bulk, cp.reduce.async.bulk,
// st.async, fence.proxy.async.
#pragma once

#include "gpu/async.h"
#include "gpu/ptx/shared.h"

namespace weft::gpu {

// ---- PTX ISA: cp.async. 16 bytes pass L1 by.
template <int N, class T>
WEFT_DEVICE void copy_async(Shared<T> to, uint32_t i, const T* from, uint32_t valid) {
  constexpr uint32_t kBytes = N * sizeof(T);
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const uint32_t address = to.address() + i * static_cast<uint32_t>(sizeof(T));
  const uint32_t bytes = valid * static_cast<uint32_t>(sizeof(T));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
}

WEFT_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
WEFT_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- PTX ISA: mbarrier.init, fence.mbarrier_init, mbarrier.inval
WEFT_DEVICE void mbarrier_init(Shared<MBarrier> barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier.address()), "r"(arrivals)
               : "memory");
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
WEFT_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
#else  // the barriers of a block need none
WEFT_DEVICE void fence_mbarrier_init() {}
#endif
WEFT_DEVICE void mbarrier_invalidate(Shared<MBarrier> barrier) {
  asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(barrier.address()) : "memory");
}

// ---- PTX ISA: mbarrier.arrive, mbarrier.expect_tx. On sm_80 an arrival counts one.
WEFT_DEVICE void mbarrier_arrive(Shared<MBarrier> barrier, uint32_t count) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(barrier.address()), "r"(count)
               : "memory");
#else
  for (uint32_t i = 0; i < count; ++i) {
    [[maybe_unused]] uint64_t state;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];"
                 : "=l"(state)
                 : "r"(barrier.address())
                 : "memory");
  }
#endif
}
// .release.cluster puts a fence of the whole GPU in front.
template <Scope kScope>
WEFT_DEVICE void mbarrier_arrive(Remote<MBarrier> barrier) {
  static_assert(kScope == Scope::block || kScope == Scope::cluster);
  [[maybe_unused]] const uint32_t address =
      detail::remote_address(barrier.local().offset(), barrier.rank());
  if constexpr (kScope == Scope::cluster)
    WEFT_PTX_SM90(asm volatile(
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory"));
  else
    WEFT_PTX_SM90(
        asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory"));
}
WEFT_DEVICE void mbarrier_arrive_expect([[maybe_unused]] Shared<MBarrier> barrier,
                                        [[maybe_unused]] uint32_t bytes) {
  WEFT_PTX_SM90(
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier.address()),
                   "r"(bytes) : "memory"));
}
WEFT_DEVICE void mbarrier_expect([[maybe_unused]] Shared<MBarrier> barrier,
                                 [[maybe_unused]] uint32_t bytes) {
  WEFT_PTX_SM90(
      asm volatile("mbarrier.expect_tx.relaxed.cta.shared.b64 [%0], %1;" ::"r"(barrier.address()),
                   "r"(bytes) : "memory"));
}
// PTX ISA: cp.async.mbarrier.arrive
WEFT_DEVICE void copy_async_arrive(Shared<MBarrier> barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier.address())
               : "memory");
}

// ---- PTX ISA: mbarrier.try_wait, which sleeps a while; sm_80 has test_wait alone.
template <Scope kScope>
WEFT_DEVICE bool mbarrier_try_wait(Shared<MBarrier> barrier, uint32_t parity) {
  static_assert(kScope == Scope::block || kScope == Scope::cluster);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define WEFT_PTX_WAIT "mbarrier.try_wait.parity"
#else
#define WEFT_PTX_WAIT "mbarrier.test_wait.parity"
#endif
#define WEFT_PTX_TEST(order) \
  "{\n.reg .pred p;\n" WEFT_PTX_WAIT order ".shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
  uint32_t done = 0;
  if constexpr (kScope == Scope::cluster)
    WEFT_PTX_SM90(
        asm volatile(WEFT_PTX_TEST(".acquire.cluster") : "=r"(done) : "r"(barrier.address()),
                     "r"(parity) : "memory"));
  else
    asm volatile(WEFT_PTX_TEST("") : "=r"(done) : "r"(barrier.address()), "r"(parity) : "memory");
#undef WEFT_PTX_TEST
#undef WEFT_PTX_WAIT
  return done != 0;
}
template <Scope kScope>
WEFT_DEVICE void mbarrier_wait(Shared<MBarrier> barrier, uint32_t parity) {
  while (!mbarrier_try_wait<kScope>(barrier, parity)) {
  }
}

// ---- PTX ISA: st.async
template <class V, class T>
WEFT_DEVICE void store_async(Remote<T> to, uint32_t i, const V& v, Shared<MBarrier> barrier) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  [[maybe_unused]] const uint32_t address =
      detail::remote_address(to.local().offset() + i * static_cast<uint32_t>(sizeof(T)), to.rank());
  [[maybe_unused]] const uint32_t counter = detail::remote_address(barrier.offset(), to.rank());
  typename detail::Bits<sizeof(V)>::type r;
  __builtin_memcpy(&r, &v, sizeof r);
  if constexpr (sizeof(V) == 4)
    WEFT_PTX_SM90(asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(address),
        "r"(r), "r"(counter) : "memory"));
  else if constexpr (sizeof(V) == 8)
    WEFT_PTX_SM90(asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1, %2}, [%3];" ::"r"(
            address),
        "r"(r.x), "r"(r.y), "r"(counter) : "memory"));
  else
    WEFT_PTX_SM90(asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(address),
        "r"(r.x), "r"(r.y), "r"(r.z), "r"(r.w), "r"(counter) : "memory"));
}

// ---- PTX ISA: fence.proxy.async
WEFT_DEVICE void fence_async() {
  WEFT_PTX_SM90(asm volatile("fence.proxy.async.shared::cta;" :: : "memory"));
}
WEFT_DEVICE void fence_async_global() {
  WEFT_PTX_SM90(asm volatile("fence.proxy.async.global;" :: : "memory"));
}

// ---- PTX ISA: cp.async.bulk
template <class T>
WEFT_DEVICE void bulk_load([[maybe_unused]] Shared<T> to, [[maybe_unused]] const T* from,
                           [[maybe_unused]] uint32_t count,
                           [[maybe_unused]] Shared<MBarrier> barrier) {
  WEFT_PTX_SM90(asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(to.address()),
      "l"(from), "r"(static_cast<uint32_t>(count * sizeof(T))), "r"(barrier.address()) : "memory"));
}

template <class T>
WEFT_DEVICE void bulk_load_multicast([[maybe_unused]] Shared<T> to, [[maybe_unused]] const T* from,
                                     [[maybe_unused]] uint32_t count,
                                     [[maybe_unused]] Shared<MBarrier> barrier,
                                     [[maybe_unused]] uint16_t blocks) {
  WEFT_PTX_SM90(asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to.address()),
      "l"(from), "r"(static_cast<uint32_t>(count * sizeof(T))), "r"(barrier.address()),
      "h"(blocks) : "memory"));
}

template <class T>
WEFT_DEVICE void bulk_store([[maybe_unused]] T* to, [[maybe_unused]] Shared<T> from,
                            [[maybe_unused]] uint32_t count) {
  WEFT_PTX_SM90(
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                   "r"(from.address()), "r"(static_cast<uint32_t>(count * sizeof(T))) : "memory"));
}

// ---- PTX ISA: cp.reduce.async.bulk
#define WEFT_PTX_REDUCE(type)                                                                      \
  WEFT_PTX_SM90(asm volatile(                                                                      \
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add." type " [%0], [%1], %2;" ::"l"(to), \
      "r"(from.address()), "r"(static_cast<uint32_t>(count * sizeof(T))) : "memory"))
template <class T>
WEFT_DEVICE void bulk_reduce_add([[maybe_unused]] T* to, [[maybe_unused]] Shared<T> from,
                                 [[maybe_unused]] uint32_t count) {
  if constexpr (std::is_same_v<T, float>) {
    WEFT_PTX_REDUCE("f32");
  } else if constexpr (std::is_same_v<T, bf16>) {
    WEFT_PTX_REDUCE("noftz.bf16");
  } else if constexpr (std::is_same_v<T, f16>) {
    WEFT_PTX_REDUCE("noftz.f16");
  } else if constexpr (std::is_same_v<T, int32_t>) {
    WEFT_PTX_REDUCE("s32");
  } else {
    static_assert(std::is_same_v<T, uint32_t>);
    WEFT_PTX_REDUCE("u32");
  }
}
#undef WEFT_PTX_REDUCE

// ---- PTX ISA: cp.async.bulk.commit_group, cp.async.bulk.wait_group
WEFT_DEVICE void bulk_commit() {
  WEFT_PTX_SM90(asm volatile("cp.async.bulk.commit_group;" :: : "memory"));
}
template <int kPending>
WEFT_DEVICE void bulk_wait() {
  WEFT_PTX_SM90(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory"));
}
template <int kPending>
WEFT_DEVICE void bulk_wait_read() {
  WEFT_PTX_SM90(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory"));
}

}  // namespace weft::gpu
