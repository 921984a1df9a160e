// Backward: what belongs to rows, then the kernels that the plan names, then the sinks.
#include "attention/cuda/backward_rows.h"
#include "attention/cuda/launch.h"

namespace weft::attention::cuda {
namespace {

template <class T>
void launch_rows(const BackwardCall& call, bool vector, gpu::Stream stream) {
  constexpr uint32_t kThreads = 256;
  const Backward& p = call.p;
  const int64_t S = call.sm90.D ? int64_t{call.sm90.longest} * call.sm90.queries : p.S,
                rows = p.B * S * p.H;
  if (rows == 0) return;
  uint32_t lanes = 1;
  while (lanes < kWarp && lanes * kVecSize<T> < p.Dv) lanes *= 2;
  launch<backward_rows_kernel<T>>({.grid = {grid_size(ceil_div<int64_t>(rows, kThreads / lanes))},
                                   .block = kThreads,
                                   .stream = stream},
                                  call, S, lanes, vector);
}

void launch_sinks(const BackwardCall& call, gpu::Stream stream) {
  const int64_t H = call.p.H;
  if (call.sinks_parts > 0)
    launch<backward_sinks_kernel>({.grid = {grid_size(H * call.sinks_parts)},
                                   .block = kSinksThreads,
                                   .shared_bytes = SinksShared().layout.bytes(),
                                   .stream = stream},
                                  call);
  launch<backward_sinks_sum_kernel>({.grid = {grid_size(H)}, .stream = stream}, call);
}

}  // namespace

void backward(const Backward& p, const Device& device) {
  const BackwardPlan plan = cuda::plan(p, device.limits);
  const gpu::Stream stream = device.stream;
  auto* const space = static_cast<char*>(p.workspace);
  const BackwardWorkspace& sizes = plan.workspace;
  BackwardCall call = {
      .p = p,
      .tiles = {},
      .sm90 = plan.sm90,
      .scoring = Scoring(p),
      .rows = reinterpret_cast<float*>(space),
      .dq = reinterpret_cast<float*>(space + sizes.rows),
      .done = reinterpret_cast<uint32_t*>(space + sizes.rows + sizes.dq + sizes.sinks),
      .sinks = reinterpret_cast<double*>(space + sizes.rows + sizes.dq),
      .sinks_parts = plan.sinks_parts,
      .scale = static_cast<float>(p.softmax_scale),
      .log2_scale = static_cast<float>(p.softmax_scale * kLog2e),
      .group = static_cast<int32_t>(p.H / p.K),
      .log2 = plan.plain || plan.sm90.D,
      .vector = plan.vector,
      .vector_out = plan.vector_out};
  if (p.q.dtype == DType::bf16)
    launch_rows<bf16>(call, plan.vector_rows, stream);
  else if (p.q.dtype == DType::f16)
    launch_rows<f16>(call, plan.vector_rows, stream);
  else
    launch_rows<float>(call, plan.vector_rows, stream);
  if (plan.sm90.D)
    backward_sm90(call, stream);
  else if (p.q.dtype == DType::bf16)
    backward_sm80_bf16(call, plan, stream);
  else if (p.q.dtype == DType::f16)
    backward_sm80_f16(call, plan, stream);
  else if (p.allow_tf32)
    backward_sm80_tf32(call, plan, stream);
  else
    backward_sm80_f32(call, plan, stream);
  if (p.dsinks) launch_sinks(call, stream);
}

}  // namespace weft::attention::cuda
