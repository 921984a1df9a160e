// Tensor copies; PTX ISA: cp.async.bulk.tensor, cp.reduce.async.bulk.tensor, prefetch.tensormap,
// createpolicy. The map is made by ptx/tensor_map.cu.
#pragma once

#include "gpu/ptx/async.h"
#include "gpu/tma.h"

namespace weft::gpu {

namespace detail {

template <CachePolicy kPolicy>
WEFT_DEVICE uint64_t policy_word() {
  uint64_t word = 0;
  if constexpr (kPolicy == CachePolicy::evict_first)
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(word));
  else if constexpr (kPolicy == CachePolicy::evict_last)
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(word));
  else
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(word));
  return word;
}

}  // namespace detail

// One instruction for each number of dimensions: `call(R, coordinates, operands)` with the operands
// %0 to %4 taken, and the coordinates from %5 on.
#define WEFT_PTX_BY_RANK(call)                                                                     \
  if constexpr (R == 1)                                                                            \
    WEFT_PTX_SM90(call("1d", "{%5}", "r"(at[0])));                                                 \
  else if constexpr (R == 2)                                                                       \
    WEFT_PTX_SM90(call("2d", "{%5, %6}", "r"(at[0]), "r"(at[1])));                                 \
  else if constexpr (R == 3)                                                                       \
    WEFT_PTX_SM90(call("3d", "{%5, %6, %7}", "r"(at[0]), "r"(at[1]), "r"(at[2])));                 \
  else if constexpr (R == 4)                                                                       \
    WEFT_PTX_SM90(call("4d", "{%5, %6, %7, %8}", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]))); \
  else                                                                                             \
    WEFT_PTX_SM90(call("5d", "{%5, %6, %7, %8, %9}", "r"(at[0]), "r"(at[1]), "r"(at[2]),           \
                       "r"(at[3]), "r"(at[4])))

template <CachePolicy kPolicy, class T, int R>
WEFT_DEVICE void tensor_load(Shared<T> to, const TensorMap& map,
                             [[maybe_unused]] const int32_t (&at)[R], Shared<MBarrier> barrier) {
  static_assert(R <= kMostTensorDims);
  [[maybe_unused]] const uint64_t policy = detail::policy_word<kPolicy>();
  [[maybe_unused]] const uint32_t address = to.address(), counter = barrier.address();
#define WEFT_PTX_CALL(rank, coordinates, ...)                                           \
  asm volatile("cp.async.bulk.tensor." rank                                             \
               ".shared::cluster.global.tile.mbarrier::complete_tx::bytes"              \
               ".L2::cache_hint [%0], [%1, " coordinates "], [%2], %3;" ::"r"(address), \
               "l"(&map), "r"(counter), "l"(policy), "n"(0), __VA_ARGS__                \
               : "memory")
  WEFT_PTX_BY_RANK(WEFT_PTX_CALL);
#undef WEFT_PTX_CALL
}

template <CachePolicy kPolicy, class T, int R>
WEFT_DEVICE void tensor_load_multicast(Shared<T> to, const TensorMap& map,
                                       [[maybe_unused]] const int32_t (&at)[R],
                                       Shared<MBarrier> barrier, [[maybe_unused]] uint16_t blocks) {
  static_assert(R <= kMostTensorDims);
  [[maybe_unused]] const uint64_t policy = detail::policy_word<kPolicy>();
  [[maybe_unused]] const uint32_t address = to.address(), counter = barrier.address();
#define WEFT_PTX_CALL(rank, coordinates, ...)                                 \
  asm volatile("cp.async.bulk.tensor." rank                                   \
               ".shared::cluster.global.tile.mbarrier::complete_tx::bytes"    \
               ".multicast::cluster.L2::cache_hint [%0], [%1, " coordinates   \
               "], [%2], %4, %3;" ::"r"(address),                             \
               "l"(&map), "r"(counter), "l"(policy), "h"(blocks), __VA_ARGS__ \
               : "memory")
  WEFT_PTX_BY_RANK(WEFT_PTX_CALL);
#undef WEFT_PTX_CALL
}

template <CachePolicy kPolicy, class T, int R>
WEFT_DEVICE void tensor_store(const TensorMap& map, [[maybe_unused]] const int32_t (&at)[R],
                              Shared<T> from) {
  static_assert(R <= kMostTensorDims);
  [[maybe_unused]] const uint64_t policy = detail::policy_word<kPolicy>();
  [[maybe_unused]] const uint32_t address = from.address();
#define WEFT_PTX_CALL(rank, coordinates, ...)                                         \
  asm volatile("cp.async.bulk.tensor." rank                                           \
               ".global.shared::cta.tile.bulk_group.L2::cache_hint [%1, " coordinates \
               "], [%0]"                                                              \
               ", %3;" ::"r"(address),                                                \
               "l"(&map), "n"(0), "l"(policy), "n"(0), __VA_ARGS__                    \
               : "memory")
  WEFT_PTX_BY_RANK(WEFT_PTX_CALL);
#undef WEFT_PTX_CALL
}

template <class T, int R>
WEFT_DEVICE void tensor_reduce_add(const TensorMap& map, [[maybe_unused]] const int32_t (&at)[R],
                                   Shared<T> from) {
  static_assert(R <= kMostTensorDims);
  [[maybe_unused]] const uint32_t address = from.address();
#define WEFT_PTX_CALL(rank, coordinates, ...)                              \
  asm volatile("cp.reduce.async.bulk.tensor." rank                         \
               ".global.shared::cta.add.tile.bulk_group [%1, " coordinates \
               "], [%0];" ::"r"(address),                                  \
               "l"(&map), "n"(0), "n"(0), "n"(0), __VA_ARGS__              \
               : "memory")
  WEFT_PTX_BY_RANK(WEFT_PTX_CALL);
#undef WEFT_PTX_CALL
}
#undef WEFT_PTX_BY_RANK

WEFT_DEVICE void prefetch(const TensorMap& map) {
  WEFT_PTX_SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"));
}

}  // namespace weft::gpu
