// Tensor copies of one to five dimensions.
#pragma once

#include "case.h"

namespace weft::gpu::tests {

template <class T>
constexpr DType kDType = DType::other;
template <>
constexpr DType kDType<float> = DType::f32;
template <>
constexpr DType kDType<bf16> = DType::bf16;
template <>
constexpr DType kDType<int32_t> = DType::i32;

// The box at `at` of x as it lies in shared memory, byte for byte; with kBack, the box at `back` of
// y is then written with it, or added to.
template <class T, int R>
struct BoxParams {
  int32_t at[R], back[R];
  T* image;  // [box]
  uint32_t count;
};
enum class Back { none, store, add };

template <class T, int R, Back kBack>
WEFT_KERNEL void tensor_kernel(WEFT_GRID_CONSTANT const TensorMap x,
                               WEFT_GRID_CONSTANT const TensorMap y, const BoxParams<T, R> p) {
  SharedLayout layout;
  const Shared<T> box = layout.take<T>(p.count, 1024);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  if (thread() == 0) {
    prefetch(x);
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(full, box.bytes());
    tensor_load<CachePolicy::evict_first>(box, x, p.at, full);
  }
  sync_block();
  mbarrier_wait(full, 0);
  for (uint32_t i = thread(); i < p.count; i += threads())
    store<Cache::normal, T>(p.image + i, box[i]);
  if constexpr (kBack != Back::none) {
    sync_block();
    if (thread() == 0) {
      if constexpr (kBack == Back::store)
        tensor_store(y, p.back, box);
      else
        tensor_reduce_add(y, p.back, box);
      bulk_commit();
      bulk_wait<0>();
    }
  }
}

// numbers: swizzle, NaN fill, then by dimension, the fastest first: sizes, box, at, back.
template <class T, int R, Back kBack>
void tensor_case(const Call& call) {
  TensorDescription x;
  x.data = call.inputs[0].data;
  x.dtype = kDType<T>;
  x.ndim = R;
  x.swizzle = static_cast<Swizzle>(call.numbers[0]);
  x.nan_fill = call.numbers[1];
  BoxParams<T, R> p;
  p.image = call.outputs[0].as<T>();
  p.count = 1;
  uint64_t stride = sizeof(T);
  for (int d = 0; d < R; ++d) {
    x.size[d] = static_cast<uint64_t>(call.numbers[2 + d]);
    x.box[d] = static_cast<uint32_t>(call.numbers[2 + R + d]);
    p.at[d] = static_cast<int32_t>(call.numbers[2 + 2 * R + d]);
    p.back[d] = static_cast<int32_t>(call.numbers[2 + 3 * R + d]);
    p.count *= x.box[d];
    stride *= x.size[d];
    if (d + 1 < R) x.stride[d] = stride;
  }
  TensorDescription y = x;
  if constexpr (kBack != Back::none) y.data = call.inouts[0].data;
  launch<tensor_kernel<T, R, kBack>>(
      {.block = kWarp,
       .shared_bytes = round_up<uint32_t>(p.count * sizeof(T), 16) + 16,
       .stream = call.stream},
      make_tensor_map(x), make_tensor_map(y), p);
}
const Register tensor_1("tensor_1", tensor_case<float, 1, Back::store>);
const Register tensor_2("tensor_2", tensor_case<bf16, 2, Back::store>);
const Register tensor_2_add("tensor_2_add", tensor_case<float, 2, Back::add>);
const Register tensor_3("tensor_3", tensor_case<bf16, 3, Back::none>);
const Register tensor_4("tensor_4", tensor_case<float, 4, Back::store>);
const Register tensor_5("tensor_5", tensor_case<int32_t, 5, Back::add>);

// Each block of a cluster loads a row of x [blocks, 64] for all: y[b] = x, in every block.
WEFT_KERNEL void tensor_multicast_kernel(WEFT_GRID_CONSTANT const TensorMap x, float* y) {
  const uint32_t size = cluster_blocks(), rank = cluster_rank();
  constexpr uint32_t kRow = 64;
  SharedLayout layout;
  const Shared<float> rows = layout.take<float>(size * kRow, 128);
  const Shared<MBarrier> full = layout.take<MBarrier>(1);
  if (thread() == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(full, rows.bytes());
  }
  sync_cluster();
  if (thread() == 0)
    tensor_load_multicast(rows.from(rank * kRow, kRow), x, {0, static_cast<int32_t>(rank)}, full,
                          static_cast<uint16_t>((1u << size) - 1));
  mbarrier_wait(full, 0);
  for (uint32_t i = thread(); i < size * kRow; i += threads())
    store<Cache::normal, float>(y + rank * size * kRow + i, rows[i]);
  sync_cluster();
}
const Register tensor_multicast("tensor_multicast", [](const Call& call) {
  const auto size = static_cast<uint32_t>(call.inputs[0].count / 64);
  TensorDescription x;
  x.data = call.inputs[0].data;
  x.dtype = DType::f32;
  x.ndim = 2;
  x.size[0] = x.box[0] = 64;
  x.size[1] = size, x.box[1] = 1;
  x.stride[0] = 64 * sizeof(float);
  launch<tensor_multicast_kernel>({.grid = {size},
                                   .block = kWarp,
                                   .cluster = {size},
                                   .shared_bytes = size * 64 * 4 + 8,
                                   .stream = call.stream},
                                  make_tensor_map(x), call.outputs[0].as<float>());
});

}  // namespace weft::gpu::tests
