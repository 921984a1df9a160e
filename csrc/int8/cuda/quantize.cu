// Launches the kernels of quantize.h.
#include "int8/cuda/quantize.h"

#include "int8/cuda/int8.h"
#include "int8/cuda/launch_quantize.h"
#include "int8/cuda/transpose.h"

namespace weft::int8::cuda {
namespace {

// f(X{}, vector) for the dtype and, both compile-time, whether chunks are moved in one access.
template <class F>
void with_kernel(DType x, bool vector, const F& f) {
  with_kernel_type(x, [&](auto type) {
    if (vector)
      f(type, std::true_type{});
    else
      f(type, std::false_type{});
  });
}

SharedScales shared_scales(const Quantize& p, const QuantizePlan& plan, void* found) {
  return {p,           plan.column_blocks, plan.row_blocks,
          plan.scales, plan.parts,         static_cast<Extremes*>(found)};
}

void find_extremes(const SharedScales& call, bool vector, Stream stream) {
  with_kernel(call.p.x.dtype, vector, [&](auto x, auto is_vector) {
    using X = decltype(x);
    constexpr bool kVector = decltype(is_vector)::value;
    launch<extremes_kernel<X, kVector>>(
        {.grid = {grid_size(call.column_blocks * call.row_blocks)},
         .block = kExtremesThreads,
         .shared_bytes = ExtremesShared<kVector ? kChunk<X> : 1>().layout.bytes(),
         .stream = stream},
        call);
  });
}

void transpose(const Transposition& call, Stream stream) {
  const auto run = [&](auto size) {
    constexpr int E = decltype(size)::value;
    launch<transpose_kernel<E>>(
        {.grid = {grid_size(ceil_div(call.N, kTurnedTile) * ceil_div(call.C, kTurnedTile))},
         .block = kTurnThreads,
         .shared_bytes = TransposeShared().layout.bytes(),
         .stream = stream},
        call);
  };
  if (call.N == 0) return;
  if (call.N % 4 == 0 && call.C % 4 == 0)
    run(std::integral_constant<int, 4>{});
  else
    run(std::integral_constant<int, 1>{});
}

}  // namespace

void quantize_rows(const QuantizeCall& call, const QuantizePlan& plan, Stream stream) {
  const int64_t segments = call.p.N * (call.p.C / plan.span);
  if (segments == 0) return;
  with_kernel(call.p.x.dtype, plan.vector, [&](auto x, auto is_vector) {
    launch<quantize_kernel<decltype(x), decltype(is_vector)::value>>(
        {.grid = {grid_size(ceil_div<int64_t>(segments, plan.teams))},
         .block = plan.threads,
         .shared_bytes = QuantizeShared().layout.bytes(),
         .stream = stream},
        call);
  });
}

void collect_outliers(const Quantize& p, const QuantizePlan& plan, void* found, float threshold,
                      uint8_t* left_out, int32_t* columns, int32_t* count, Stream stream) {
  const SharedScales call = shared_scales(p, plan, found);
  find_extremes(call, plan.vector, stream);
  launch<collect_outliers_kernel>({.grid = {1},
                                   .block = kCollectThreads,
                                   .shared_bytes = CollectShared().layout.bytes(),
                                   .stream = stream},
                                  call, threshold, left_out, columns, count);
}

void quantize(const Quantize& p, const Device& device) {
  const QuantizePlan plan = cuda::plan(p, device.limits);
  QuantizeCall call = {p, plan.span, plan.lanes, p.C};
  if (p.transposed) call.p.q = static_cast<int8_t*>(p.workspace) + plan.found_bytes;
  if (plan.shared) {
    const SharedScales scales = shared_scales(p, plan, p.workspace);
    find_extremes(scales, plan.vector, device.stream);
    launch<find_scales_kernel>({.grid = {grid_size(ceil_div<int64_t>(plan.scales, kExtremesWarps))},
                                .block = kExtremesThreads,
                                .stream = device.stream},
                               scales);
    call.p.dynamic = false;
  }
  quantize_rows(call, plan, device.stream);
  if (p.transposed) transpose({call.p.q, p.q, p.N, p.C}, device.stream);
}

void dequantize(const Dequantize& p, const Device& device) {
  const auto chunk = static_cast<int64_t>(16 / size_of(p.dtype));
  const bool vector = p.C % chunk == 0 && is_aligned(p.q, chunk) && is_aligned(p.x, 16);
  const int64_t units = p.N * (p.C / (vector ? chunk : 1));
  with_kernel(p.dtype, vector, [&](auto x, auto is_vector) {
    launch<dequantize_kernel<decltype(x), decltype(is_vector)::value>>(
        {.grid = {grid_size(ceil_div<int64_t>(units, kDequantizeThreads))},
         .block = kDequantizeThreads,
         .stream = device.stream},
        p);
  });
}

}  // namespace weft::int8::cuda
