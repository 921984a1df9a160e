// Launches the kernels of weight_only.h.
#include "int8/cuda/weight_only.h"

#include "gpu/plan.h"
#include "int8/cuda/launch_linear.h"
#include "int8/cuda/launch_sm90.h"

namespace weft::int8::cuda {
namespace {

template <class X, int kBits, int kTokens>
void launch_fragments(const WeightOnlyCall& call, Stream stream) {
  launch<weight_only_kernel<X, kBits, kTokens>>(
      {.grid = {grid_size(int64_t{call.plan.blocks_n} * call.plan.blocks_m)},
       .block = kWeightOnlyThreads,
       .shared_bytes = WeightOnlyShared<kTokens>().layout.bytes(),
       .stream = stream},
      call);
}

template <class X, int kBits>
void launch_bits(const WeightOnlyCall& call, Stream stream) {
  if (call.plan.tokens == 8)
    launch_fragments<X, kBits, 8>(call, stream);
  else
    launch_fragments<X, kBits, 32>(call, stream);
}

// What the kernels of sm_90a could take: a scale for each row of the weight, and 16-bit x in rows.
std::optional<PlanSm90> sm90_plan(const Linear& p, const ProductSm90& product,
                                  const gpu::Limits& limits) {
  const bool plain = p.bits == 8 && p.group == p.K && !p.weight_zero_point && p.x.ndim == 1 &&
                     p.x.dtype != DType::f32;
  return plain ? plan_sm90(product, limits) : std::nullopt;
}

}  // namespace

// The table of kernels, the most general last.
void weight_only(const Linear& p, const Device& device) {
  const ProductSm90 product = product_of(p, p.x.data, p.x.dtype, p.x.stride[0] * 2);
  if (const auto plan = sm90_plan(p, product, device.limits))
    return gemm_sm90(product, *plan, epilogue_of(p, nullptr), device.stream);
  const PackedLayout layout(p.N, p.K, p.bits);
  const WeightOnlyCall call = {epilogue_of(p, nullptr),
                               plan_weight_only(p, device.limits),
                               p.x,
                               is_aligned(p.x, 16),
                               p.bits,
                               layout.weight(p.packed),
                               layout.row_bytes,
                               p.K,
                               p.group,
                               p.weight_scale,
                               p.weight_zero_point};
  with_kernel_type(p.x.dtype, [&](auto x) {
    using X = decltype(x);
    if constexpr (sizeof(X) == 2)
      if (call.plan.fragments)
        return p.bits == 8 ? launch_bits<X, 8>(call, device.stream)
                           : launch_bits<X, 4>(call, device.stream);
    const int64_t blocks =
        ceil_div<int64_t>(p.N, kAnyThreads / kWarp) * ceil_div<int64_t>(p.M, kAnyRows);
    launch<weight_only_any_kernel<X>>(
        {.grid = {grid_size(blocks)}, .block = kAnyThreads, .stream = device.stream}, call);
  });
}

}  // namespace weft::int8::cuda
