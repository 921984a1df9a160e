// Launches the kernels of forward_sm80.h for one kind of operands: each has a .cu file of its own, so
// that they are compiled side by side.
#pragma once

#include "attention/cuda/forward_sm80.h"
#include "attention/cuda/launch.h"

namespace weft::attention::cuda {

template <class Op, int kD, int kDv, ForwardKernel kKernel>
void launch_kernel(const ForwardCall& call, const Device& device) {
  using X = typename Op::X;
  const Forward& p = call.p;
  const ForwardPlan& plan = call.plan;
  const bool int8 = p.k.dtype == DType::i8;
  launch<forward_sm80_kernel<Op, kD, kDv, kKernel>>(
      {.grid = {grid_size(plan.row_blocks * plan.chunks * plan.splits * p.K *
                          (plan.packed ? 1 : p.B))},
       .block = static_cast<uint32_t>(ForwardTraits<X, kD, kDv, kKernel>::kThreads),
       .shared_bytes = ForwardShared<X, kD, kDv, kKernel>(int8).layout.bytes(),
       .stream = device.stream},
      call);
}

// The table of kernels, the most general last.
template <class Op>
void launch_sm80(const ForwardCall& call, const Device& device) {
  const ForwardPlan& plan = call.plan;
  using enum ForwardKernel;
  constexpr size_t kElement = sizeof(typename Op::X);
  if constexpr (kElement == 2) {
    if (plan.kernel == sm80_plain) switch (plan.head_size.D) {
        case 64:
          return launch_kernel<Op, 64, 64, sm80_plain>(call, device);
        case 128:
          return launch_kernel<Op, 128, 128, sm80_plain>(call, device);
        default:
          return launch_kernel<Op, 256, 256, sm80_plain>(call, device);
      }
    if (plan.kernel == sm80_few)
      return plan.head_size.D == 64 ? launch_kernel<Op, 64, 64, sm80_few>(call, device)
                                    : launch_kernel<Op, 128, 128, sm80_few>(call, device);
  }
  constexpr int kMostDv = kElement == 2 ? 256 : 64;
  switch (plan.head_size.D) {
    case 64:
      return launch_kernel<Op, 64, 64, sm80_any>(call, device);
    case 128:
      return launch_kernel<Op, 128, 128, sm80_any>(call, device);
    case 256:
      return launch_kernel<Op, 256, kMostDv, sm80_any>(call, device);
    default:
      return launch_kernel<Op, 512, kMostDv, sm80_any>(call, device);
  }
}

}  // namespace weft::attention::cuda
