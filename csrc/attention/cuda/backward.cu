// Backward: what belongs to rows, then the kernels that the plan names, then the sinks.
#include "attention/cuda/backward_rows.h"
#include "attention/cuda/launch.h"

namespace weft::attention::cuda {
namespace {

template <class T>
void launch_rows(const BackwardCall& call, bool vector, gpu::Stream stream) {
  constexpr uint32_t kThreads = 256;
  const Backward& p = call.p;
  const int64_t rows = p.B * p.S * p.H;
  if (rows == 0) return;
  uint32_t lanes = 1;
  while (lanes < kWarp && lanes * kVecSize<T> < p.Dv) lanes *= 2;
  launch<backward_rows_kernel<T>>({.grid = {grid_size(ceil_div<int64_t>(rows, kThreads / lanes))},
                                   .block = kThreads,
                                   .stream = stream},
                                  call, lanes, vector);
}

}  // namespace

void backward(const Backward& p, const Device& device) {
  const BackwardPlan plan = cuda::plan(p, device.limits);
  const gpu::Stream stream = device.stream;
  BackwardCall call = {.p = p,
                       .tiles = {},
                       .scoring = Scoring(p),
                       .rows = static_cast<float*>(p.workspace),
                       .scale = static_cast<float>(p.softmax_scale),
                       .log2_scale = static_cast<float>(p.softmax_scale * kLog2e),
                       .group = static_cast<int32_t>(p.H / p.K),
                       .plain = plan.plain,
                       .vector = plan.vector,
                       .vector_out = plan.vector_out};
  if (p.q.dtype == DType::bf16) {
    launch_rows<bf16>(call, plan.vector_rows, stream);
    backward_sm80_bf16(call, plan, stream);
  } else if (p.q.dtype == DType::f16) {
    launch_rows<f16>(call, plan.vector_rows, stream);
    backward_sm80_f16(call, plan, stream);
  } else {
    launch_rows<float>(call, plan.vector_rows, stream);
    backward_sm80_f32(call, plan, stream);
  }
  if (p.dsinks)
    launch<backward_sinks_kernel>({.grid = {grid_size(p.H)},
                                   .block = kSinksThreads,
                                   .shared_bytes = SinksShared{}.layout.bytes(),
                                   .stream = stream},
                                  call);
}

}  // namespace weft::attention::cuda
