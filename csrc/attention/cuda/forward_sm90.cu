// Launches the kernels of forward_sm90.h.
#include "attention/cuda/forward_sm90.h"

#include "attention/cuda/launch.h"

namespace weft::attention::cuda {
namespace {

// A tensor of heads in boxes of 64 elements of so many rows. Of a dimension of one element the
// stride does not matter, and may be any.
TensorMap map_of(const Heads& t, int64_t elements, int64_t rows, int64_t heads, int64_t batch,
                 uint32_t box_rows) {
  const auto size = static_cast<int64_t>(size_of(t.dtype));
  const auto stride = [&](int64_t count, int64_t step) {
    return static_cast<uint64_t>(count > 1 ? step * size : 16);
  };
  TensorDescription d;
  d.data = t.data;
  d.dtype = t.dtype;
  d.ndim = 4;
  const int64_t sizes[] = {elements, rows, heads, batch};
  for (int i = 0; i < 4; ++i) d.size[i] = static_cast<uint64_t>(sizes[i]), d.box[i] = 1;
  d.stride[0] = stride(rows, t.row), d.stride[1] = stride(heads, t.head);
  d.stride[2] = stride(batch, t.batch);
  d.box[0] = 64, d.box[1] = box_rows;
  d.swizzle = Swizzle::bytes128;
  return make_tensor_map(d);
}

template <class T, class Shape>
void launch_shape(const ForwardCall& call, const Device& device) {
  const Forward& p = call.p;
  using M = Tiles<T, Shape>;
  const M smem;
  const Sequences& s = p.sequences;
  const int64_t q_rows = s.cu_q ? p.total_q : p.S, q_batch = s.cu_q ? 1 : p.B;
  const int64_t k_rows = s.cu_k ? p.total_k : p.T;
  const int64_t k_batch = s.cu_k ? 1 : s.cache_row ? p.caches : p.B;
  const ForwardSm90 own{p, call.plan.schedule, call.scoring, k_rows, s.cu_q || s.used_q};
  launch<forward_sm90_kernel<T, Shape>>({.grid = {call.plan.grid},
                                         .block = Shape::kThreads,
                                         .shared_bytes = smem.layout.bytes(),
                                         .stream = device.stream},
                                        map_of(p.q, p.D, q_rows, p.H, q_batch, M::Q::kRows),
                                        map_of(p.k, p.D, k_rows, p.K, k_batch, M::K::kRows),
                                        map_of(p.v, p.Dv, k_rows, p.K, k_batch, M::V::kRows),
                                        map_of(p.out, p.Dv, q_rows, p.H, q_batch, M::O::kRows),
                                        own);
}

template <class T>
void launch_type(const ForwardCall& call, const Device& device) {
  const int D = call.plan.head_size.D;
  if (call.plan.kernel == ForwardKernel::sm90_options) {
    if (D == 64)
      launch_shape<T, Shape<64, 64, true>>(call, device);
    else
      launch_shape<T, Shape<128, 128, true>>(call, device);
  } else if (D == 64) {
    launch_shape<T, Shape<64, 64, false>>(call, device);
  } else if (D == 128) {
    launch_shape<T, Shape<128, 128, false>>(call, device);
  } else if (D == 192) {
    launch_shape<T, Shape<192, 128, false>>(call, device);
  } else {
    launch_shape<T, Shape<256, 256, false>>(call, device);
  }
}

}  // namespace

void forward_sm90(const ForwardCall& call, const Device& device) {
  if (call.p.q.dtype == DType::bf16)
    launch_type<bf16>(call, device);
  else
    launch_type<f16>(call, device);
}

}  // namespace weft::attention::cuda
