// Tensor copies in the simulator. A TensorMap holds a CopyTensor (engine.h).
#pragma once

#include "gpu/sim/async.h"
#include "gpu/tma.h"

namespace weft::gpu {

template <CachePolicy kPolicy, class T, int R>
WEFT_DEVICE void tensor_load(Shared<T> to, const TensorMap& map, const int32_t (&at)[R],
                             Shared<MBarrier> barrier) {
  sim::tensor_load(to.offset(), to.bytes(), map, at, R, barrier.offset(), 0);
}
template <CachePolicy kPolicy, class T, int R>
WEFT_DEVICE void tensor_load_multicast(Shared<T> to, const TensorMap& map, const int32_t (&at)[R],
                                       Shared<MBarrier> barrier, uint16_t blocks) {
  sim::tensor_load(to.offset(), to.bytes(), map, at, R, barrier.offset(), blocks);
}
template <CachePolicy kPolicy, class T, int R>
WEFT_DEVICE void tensor_store(const TensorMap& map, const int32_t (&at)[R], Shared<T> from) {
  sim::tensor_store(map, at, R, from.offset(), from.bytes(), nullptr);
}
template <class T, int R>
WEFT_DEVICE void tensor_reduce_add(const TensorMap& map, const int32_t (&at)[R], Shared<T> from) {
  sim::tensor_store(map, at, R, from.offset(), from.bytes(), &detail::kAdd<T>);
}
WEFT_DEVICE void prefetch(const TensorMap&) {}

}  // namespace weft::gpu
