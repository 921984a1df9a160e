// Launches the kernels of forward.h.
#include "norm/cuda/forward.h"

#include "norm/cuda/launch.h"
#include "norm/cuda/norm.h"

namespace weft::norm::cuda {
namespace {

// The table of kernels, the most general last.
template <class X>
void launch_forward(const ForwardPlan& plan, const gpu::LaunchConfig& config,
                    const ForwardCall& call) {
  const bool int8 = static_cast<bool>(call.p.int8);
  if (plan.usual && plan.few && !int8)
    launch<forward_usual_kernel<X, kFew, false>>(config, call);
  else if (plan.usual && plan.few)
    launch<forward_usual_kernel<X, kFew, true>>(config, call);
  else if (plan.usual && !int8)
    launch<forward_usual_kernel<X, kMany, false>>(config, call);
  else if (plan.usual)
    launch<forward_usual_kernel<X, kMany, true>>(config, call);
  else if (plan.vector)
    launch<forward_any_kernel<X, true>>(config, call);
  else
    launch<forward_any_kernel<X, false>>(config, call);
}

}  // namespace

void forward(const Forward& p, const Device& device) {
  if (p.N == 0 || p.C == 0) return;
  const ForwardPlan plan = cuda::plan(p, device.limits);
  const ForwardCall call{p,
                         plan.geometry,
                         Draw(p.dropout),
                         plan.tile,
                         static_cast<float>(p.eps),
                         static_cast<float>(p.residual_alpha)};
  const gpu::LaunchConfig config = launch_rows(
      plan.geometry, p.N, ForwardShared(plan.geometry, plan.tile).layout.bytes(), device.stream);
  with_kernel_type(p.x.dtype, [&](auto x) { launch_forward<decltype(x)>(plan, config, call); });
}

void dropout_mask(const Dropout& dropout, int64_t count, int stream, bool* mask,
                  const Device& device) {
  constexpr uint32_t kThreads = 256;
  const int64_t blocks = ceil_div<int64_t>(count, int64_t{kThreads} * kMaskElements);
  if (blocks == 0) return;
  launch<dropout_mask_kernel>(
      {.grid = {grid_size(blocks)}, .block = kThreads, .stream = device.stream}, Draw(dropout),
      count, stream, reinterpret_cast<uint8_t*>(mask));
}

}  // namespace weft::norm::cuda
