// The linear layers: the launches that a call takes, one after the other.
#include "int8/cuda/gemm_sm80.h"
#include "int8/cuda/launch_linear.h"
#include "int8/cuda/launch_quantize.h"
#include "int8/cuda/launch_sm90.h"
#include "int8/cuda/packed.h"

namespace weft::int8::cuda {
namespace {

// As many elements as every row of a tensor begins at a multiple of: 4, 2 or 1.
uint32_t vector_of(const Rows& rows) {
  const auto size = static_cast<int64_t>(size_of(rows.dtype));
  return is_aligned(rows, 4 * size) ? 4 : is_aligned(rows, 2 * size) ? 2 : 1;
}

template <GemmShape kShape>
void launch_gemm(const GemmSm80& call, Stream stream) {
  const GemmPlan& plan = call.plan;
  launch<gemm_sm80_kernel<kShape>>(
      {.grid = {grid_size(int64_t{plan.tiles_m} * plan.tiles_n * plan.splits)},
       .block = GemmShared<kShape>::kThreads,
       .shared_bytes = GemmShared<kShape>{}.layout.bytes(),
       .stream = stream},
      call);
}

void gemm_sm80(const GemmSm80& call, Stream stream) {
  if (call.plan.shape == GemmShape::large)
    launch_gemm<GemmShape::large>(call, stream);
  else if (call.plan.shape == GemmShape::medium)
    launch_gemm<GemmShape::medium>(call, stream);
  else
    launch_gemm<GemmShape::small>(call, stream);
  if (call.plan.splits == 1) return;
  const Epilogue& e = call.ending.end;
  const LaunchConfig config = {
      .grid = {grid_size(ceil_div<int64_t>(e.M * ceil_div<int64_t>(e.N, 4), kFinishThreads))},
      .block = kFinishThreads,
      .stream = stream};
  if (call.K > kMostDepth)
    launch<finish_splits_kernel<true>>(config, call);
  else
    launch<finish_splits_kernel<false>>(config, call);
}

}  // namespace

Epilogue epilogue_of(const Linear& p, const float* row_scale, const int32_t* row_zero_point) {
  Epilogue e;
  e.M = p.M;
  e.N = p.N;
  e.x_scale = row_scale ? row_scale : p.x_scale;
  e.x_zero_point = row_scale ? row_zero_point : p.x_zero_point;
  e.x_scale_row = row_scale ? 1 : p.x_scale_row;
  e.weight_scale = p.weight_scale;
  e.weight_sum = PackedLayout(p.N, p.K, p.bits).sums(p.packed);
  e.bias = p.bias;
  e.bias_dtype = p.bias_dtype;
  e.activation = p.activation;
  e.residual = p.residual;
  if (p.residual) e.residual_vector = vector_of(p.residual);
  e.out = p.out;
  e.out_dtype = p.out_dtype;
  e.out_vector = vector_of(Rows{p.out, p.out_dtype, 1, {p.M}, {p.N}});
  e.out_scale = p.out_scale;
  e.out_zero_point = p.out_zero_point;
  return e;
}

void linear(const Linear& p, const Device& device) {
  if (p.operand == Operand::wide) return weight_only(p, device);
  const LinearPlan plan = cuda::plan(p, device.limits);
  const auto piece = [&](auto type, int64_t at) {
    using T = decltype(type);
    return at < 0 ? nullptr : reinterpret_cast<T*>(static_cast<char*>(p.workspace) + at);
  };
  const PackedLayout layout(p.N, p.K, p.bits);
  auto* const a = piece(int8_t{}, plan.a);
  auto* const scale = piece(float{}, plan.scale);
  auto* const zero_point = piece(int32_t{}, plan.zero_point);

  GemmSm80 call;
  call.ending.end = epilogue_of(p, scale, zero_point);
  if (p.operand == Operand::outliers) {
    auto* const columns = piece(int32_t{}, plan.columns);
    auto* const count = piece(int32_t{}, plan.count);
    collect_outliers(extremes_of(p), plan.outliers, piece(char{}, plan.found), p.threshold,
                     piece(uint8_t{}, plan.left_out), columns, count, device.stream);
    call.ending.outliers = {count, columns};
    call.ending.x = p.x;
    call.ending.weight = layout.weight(p.packed);
    call.ending.weight_row = layout.row_bytes;
  }
  if (scale) {
    QuantizeCall quantize = {quantization_of(p), plan.quantize.span, plan.quantize.lanes,
                             plan.x_row};
    quantize.p.q = a;
    quantize.columns = plan.x_row;
    quantize.left_out = piece(uint8_t{}, plan.left_out);
    quantize.row_scale = scale;
    quantize.row_zero_point = zero_point;
    quantize_rows(quantize, plan.quantize, device.stream);
  } else if (!plan.rows_as_they_are) {
    const int64_t units = p.M * (plan.x_row / 16);
    launch<align_rows_kernel>({.grid = {grid_size(ceil_div<int64_t>(units, kAlignThreads))},
                               .block = kAlignThreads,
                               .stream = device.stream},
                              p.x, p.M, p.K, plan.x_row, a);
  }
  const int8_t* x = plan.rows_as_they_are ? static_cast<const int8_t*>(p.x.data) : a;
  if (plan.sm90)
    return gemm_sm90(product_of(p, x, DType::i8, plan.x_row), *plan.sm90, call.ending.end,
                     device.stream);
  call.plan = plan.gemm;
  call.x = x;
  call.x_row = plan.x_row;
  call.K = p.K;
  call.weight = layout.weight(p.packed);
  call.weight_row = layout.row_bytes;
  call.weight_rows = layout.rows;
  call.parts = piece(int32_t{}, plan.parts);
  gemm_sm80(call, device.stream);
}

}  // namespace weft::int8::cuda
