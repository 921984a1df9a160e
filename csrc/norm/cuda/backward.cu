// Launches the kernels of backward.h.
#include "norm/cuda/backward.h"

#include "norm/cuda/launch.h"
#include "norm/cuda/norm.h"

namespace weft::norm::cuda {
namespace {

template <class X>
void launch_usual(const BackwardPlan& plan, const gpu::LaunchConfig& config,
                  const BackwardCall& call) {
  if (plan.few)
    launch<backward_usual_kernel<X, kFew>>(config, call);
  else
    launch<backward_usual_kernel<X, kHeld>>(config, call);
}

template <class X, bool kVector>
void launch_any(const BackwardPlan& plan, const gpu::LaunchConfig& config,
                const BackwardCall& call) {
  constexpr int64_t kColumns = kWarp * (kVector ? kVecSize<X> : 1);
  const Backward& p = call.p;
  if (plan.rows) launch<backward_rows_kernel<X, kVector>>(config, call);
  if (!plan.columns) return;
  launch<backward_columns_kernel<X, kVector>>(
      {.grid = {grid_size(ceil_div(p.C, kColumns)),
                grid_size(ceil_div<int64_t>(plan.groups, kColumnWarps)), grid_size(p.weight.heads)},
       .block = kColumnWarps * kWarp,
       .stream = config.stream},
      call);
}

void launch_reduce(const BackwardCall& call, gpu::Stream stream) {
  launch<backward_reduce_kernel>({.grid = {grid_size(ceil_div<int64_t>(call.p.C, kWarp)), kVectors,
                                           grid_size(call.p.weight.heads)},
                                  .block = kReduceParts * kWarp,
                                  .shared_bytes = ReduceShared().layout.bytes(),
                                  .stream = stream},
                                 call);
}

}  // namespace

int64_t workspace_bytes(const Backward& p, const gpu::Limits& limits) {
  return plan(p, limits).workspace_bytes;
}

void backward(const Backward& p, const Device& device) {
  if (p.C == 0) return;
  const BackwardPlan plan = cuda::plan(p, device.limits);
  char* workspace = static_cast<char*>(p.workspace);
  const BackwardCall call{p,
                          plan.geometry,
                          Draw(p.dropout),
                          plan.tile,
                          plan.groups,
                          reinterpret_cast<float*>(workspace + plan.means_bytes),
                          reinterpret_cast<Two*>(workspace),
                          static_cast<float>(p.residual_alpha),
                          p.eps > 0 ? static_cast<float>(p.eps) : 1e-30f};
  if (plan.rows || plan.columns) {
    const auto shared = [&](int64_t columns) {
      return BackwardShared(plan.geometry, columns).layout.bytes();
    };
    with_kernel_type(p.x_dtype, [&](auto x) {
      using X = decltype(x);
      if (plan.usual) {
        gpu::LaunchConfig config = launch_rows(plan.geometry, plan.groups * plan.geometry.rows,
                                               shared(plan.tile), device.stream);
        return launch_usual<X>(plan, config, call);
      }
      const gpu::LaunchConfig config =
          launch_rows(plan.geometry, p.N, shared(2 * plan.tile), device.stream);
      plan.vector ? launch_any<X, true>(plan, config, call)
                  : launch_any<X, false>(plan, config, call);
    });
  }
  // Without rows the gradients of the vectors are still zeros.
  if (p.dweight || p.dbias || p.dweight1 || p.dbias1 || p.dx_bias || p.dlayerscale)
    launch_reduce(call, device.stream);
}

}  // namespace weft::norm::cuda
