// Forward: the kernels that the plans name, and the merge of splits.
#include "attention/cuda/launch.h"
#include "attention/cuda/merge_splits.h"

namespace weft::attention::cuda {

bool takes_fresh(const Forward& p, const Device& device) {
  return takes_fresh(p, device.limits, device.prefer_sm90);
}

namespace {

void run(const ForwardCall& call, const Device& device) {
  const Forward& p = call.p;
  if (call.plan.kernel < ForwardKernel::sm80_plain)
    forward_sm90(call, device);
  else if (p.q.dtype == DType::bf16)
    forward_sm80_bf16(call, device);
  else if (p.q.dtype == DType::f16)
    forward_sm80_f16(call, device);
  else if (p.allow_tf32)
    forward_sm80_tf32(call, device);
  else
    forward_sm80_f32(call, device);
  if (call.plan.parts) {
    const uint32_t warps = merge_warps(call.plan.splits);
    launch<merge_splits_kernel>(
        {.grid = {grid_size(ceil_div<int64_t>(part_rows(call), kMergeWarps / warps))},
         .block = kMergeThreads,
         .shared_bytes = warps > 1 ? MergeShared().layout.bytes() : 0,
         .stream = device.stream},
        call, warps);
  }
}

}  // namespace

void forward(const Forward& p, const Device& device) {
  if (p.B == 0 || p.S == 0) return;
  const ForwardPlan plan = cuda::plan(p, device.limits, device.prefer_sm90);
  run({p, plan, Scoring(p)}, device);
  if (plan.least > 0) run({p, decoding_plan(p, device.limits), Scoring(p)}, device);
}

}  // namespace weft::attention::cuda
