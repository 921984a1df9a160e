// Launches the kernels of forward_sm90.h.
#include "attention/cuda/forward_sm90.h"

#include "attention/cuda/launch.h"

namespace weft::attention::cuda {
namespace {

template <class T, class Shape>
void launch_shape(const ForwardCall& call, const Device& device) {
  const Forward& p = call.p;
  using M = Tiles<T, Shape>;
  const M smem;
  const Sequences& s = p.sequences;
  const Extents e(p);
  const auto part = static_cast<uint32_t>(s.block_table ? page_part(s.page_size, Shape::kKeys)
                                                        : int64_t{Shape::kKeys});
  // Behind a sequence there is always something in its last page.
  const ForwardSm90 own{p,
                        call.plan.schedule,
                        call.scoring,
                        call.plan.packed,
                        call.plan.least,
                        s.block_table ? INT64_MAX : e.k_rows,
                        s.cu_q || s.used_q,
                        part};
  launch<forward_sm90_kernel<T, Shape>>({.grid = {call.plan.grid},
                                         .block = Shape::kThreads,
                                         .shared_bytes = smem.layout.bytes(),
                                         .stream = device.stream},
                                        map_of(p.q, p.D, e.q_rows, p.H, e.q_batch, M::Q::kRows),
                                        map_of(p.k, p.D, e.k_rows, p.K, e.k_batch, part),
                                        map_of(p.v, p.Dv, e.k_rows, p.K, e.k_batch, part),
                                        map_of(p.out, p.Dv, e.q_rows, p.H, e.q_batch, M::O::kRows),
                                        own);
}

template <class T, bool kOptions>
void launch_options(const ForwardCall& call, const Device& device) {
  const int D = call.plan.head_size.D;
  if (D == 64)
    launch_shape<T, Shape<64, 64, kOptions>>(call, device);
  else if (D == 128)
    launch_shape<T, Shape<128, 128, kOptions>>(call, device);
  else if (kOptions || D == 192)
    launch_shape<T, Shape<192, 128, kOptions>>(call, device);
  else
    launch_shape<T, Shape<256, 256, false>>(call, device);
}

template <class T>
void launch_type(const ForwardCall& call, const Device& device) {
  if (call.plan.kernel == ForwardKernel::sm90_options)
    launch_options<T, true>(call, device);
  else
    launch_options<T, false>(call, device);
}

}  // namespace

void forward_sm90(const ForwardCall& call, const Device& device) {
  if (call.p.q.dtype == DType::bf16)
    launch_type<bf16>(call, device);
  else
    launch_type<f16>(call, device);
}

}  // namespace weft::attention::cuda
