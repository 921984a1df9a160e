// Multicast memory: one address behind which several GPUs have a copy each. sm_90, where the
// machine has it (NVSwitch).
//
// A multicast address is used with these words alone. They act at system scope and order nothing,
// multimem_add with Order::release excepted. Accesses to a copy by its own address come by another
// proxy: fence_alias stands between them and these.
#pragma once

#include "gpu/global.h"

namespace weft::gpu {

// The sum of all copies, accumulated in fp32. 16 bytes: T is float, bf16 or f16.
template <class T>
WEFT_DEVICE Vec<T, kVecSize<T>> multimem_load_add(const T* p);
// Into all copies.
template <class T>
WEFT_DEVICE void multimem_store(T* p, const Vec<T, kVecSize<T>>& v);
// Adds to all copies: flags that count.
template <Order kOrder = Order::relaxed>
WEFT_DEVICE void multimem_add(uint32_t* p, uint32_t v);

// Orders what this thread does to the same memory by several addresses.
WEFT_DEVICE void fence_alias();

}  // namespace weft::gpu
