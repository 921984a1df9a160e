// Launches the kernels of forward_sm80.h and finish.h.
#include "attention/cuda/forward_sm80.h"

#include "attention/cuda/attention.h"
#include "core/error.h"

namespace weft::attention::cuda {
namespace {

uint32_t grid_size(int64_t blocks) {
  check(blocks <= INT32_MAX, "weft: ", blocks, " blocks are more than a CUDA grid holds");
  return static_cast<uint32_t>(blocks);
}

template <class X, int kD, int kDv, bool kPlain>
void launch_kernel(const ForwardCall& call, const Device& device) {
  const Forward& p = call.p;
  const ForwardPlan& plan = call.plan;
  const bool int8 = p.k.dtype == DType::i8;
  launch<forward_sm80_kernel<X, kD, kDv, kPlain>>(
      {.grid = {grid_size(plan.row_blocks * plan.chunks * plan.splits * p.K * p.B)},
       .block = static_cast<uint32_t>(ForwardTraits<X, kD, kDv, kPlain>::kThreads),
       .shared_bytes = ForwardShared<X, kD, kDv, kPlain>(int8).layout.bytes(),
       .stream = device.stream},
      call);
}

// f(X{}) for the dtype of q. float64 has been refused.
template <class F>
void with_kernel_type(DType q, const F& f) {
  if (q == DType::bf16)
    f(bf16{});
  else if (q == DType::f16)
    f(f16{});
  else
    f(float{});
}

template <class X>
void launch_forward(const ForwardCall& call, const Device& device) {
  const ForwardPlan& plan = call.plan;
  if constexpr (sizeof(X) == 2)
    if (plan.kernel == ForwardKernel::sm80_plain) switch (plan.head_size.D) {
        case 64:
          return launch_kernel<X, 64, 64, true>(call, device);
        case 128:
          return launch_kernel<X, 128, 128, true>(call, device);
        default:
          return launch_kernel<X, 256, 256, true>(call, device);
      }
  switch (plan.head_size.D) {
    case 64:
      return launch_kernel<X, 64, 64, false>(call, device);
    case 128:
      return launch_kernel<X, 128, 128, false>(call, device);
    case 256:
      return launch_kernel<X, 256, 256, false>(call, device);
    default:
      return launch_kernel<X, 512, 256, false>(call, device);
  }
}

}  // namespace

void forward(const Forward& p, const Device& device) {
  if (p.B == 0 || p.S == 0) return;
  const ForwardCall call = {p, cuda::plan(p, device.limits), Scoring(p)};
  with_kernel_type(p.q.dtype, [&](auto x) { launch_forward<decltype(x)>(call, device); });
  if (call.plan.splits > 1)
    launch<merge_splits_kernel>(
        {.grid = {grid_size(ceil_div<int64_t>(p.B * p.S * p.H, kMergeThreads / kWarp))},
         .block = kMergeThreads,
         .stream = device.stream},
        call);
}

}  // namespace weft::attention::cuda
