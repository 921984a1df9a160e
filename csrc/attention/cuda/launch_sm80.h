// Launches the kernels of forward_sm80.h for one kind of operands: each has a .cu file of its own, so
// that they are compiled side by side.
#pragma once

#include "attention/cuda/forward_sm80.h"
#include "attention/cuda/launch.h"

namespace weft::attention::cuda {

template <class Op, int kD, int kDv, bool kPlain>
void launch_kernel(const ForwardCall& call, const Device& device) {
  using X = typename Op::X;
  const Forward& p = call.p;
  const ForwardPlan& plan = call.plan;
  const bool int8 = p.k.dtype == DType::i8;
  launch<forward_sm80_kernel<Op, kD, kDv, kPlain>>(
      {.grid = {grid_size(plan.row_blocks * plan.chunks * plan.splits * p.K * p.B)},
       .block = static_cast<uint32_t>(ForwardTraits<X, kD, kDv, kPlain>::kThreads),
       .shared_bytes = ForwardShared<X, kD, kDv, kPlain>(int8).layout.bytes(),
       .stream = device.stream},
      call);
}

// The table of kernels, the most general last.
template <class Op>
void launch_sm80(const ForwardCall& call, const Device& device) {
  const ForwardPlan& plan = call.plan;
  constexpr bool kHalf = sizeof(typename Op::X) == 2;
  if constexpr (kHalf)
    if (plan.kernel == ForwardKernel::sm80_plain) switch (plan.head_size.D) {
        case 64:
          return launch_kernel<Op, 64, 64, true>(call, device);
        case 128:
          return launch_kernel<Op, 128, 128, true>(call, device);
        default:
          return launch_kernel<Op, 256, 256, true>(call, device);
      }
  constexpr int kMostDv = kHalf ? 256 : 64;
  switch (plan.head_size.D) {
    case 64:
      return launch_kernel<Op, 64, 64, false>(call, device);
    case 128:
      return launch_kernel<Op, 128, 128, false>(call, device);
    case 256:
      return launch_kernel<Op, 256, kMostDv, false>(call, device);
    default:
      return launch_kernel<Op, 512, kMostDv, false>(call, device);
  }
}

}  // namespace weft::attention::cuda
