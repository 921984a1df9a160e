// The linear layers: the launches that a call takes, one after the other.
#include <algorithm>

#include "gpu/plan.h"
#include "int8/cuda/finish_parts.h"
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
       .shared_bytes = GemmShared<kShape>().layout.bytes(),
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
}

void finish_parts(const FinishParts& call, Stream stream) {
  const int64_t fours = call.end.M * ceil_div(call.end.N, 4);
  launch<finish_parts_kernel>({.grid = {grid_size(ceil_div(fours, kFinishThreads))},
                               .block = kFinishThreads,
                               .stream = stream},
                              call);
}

void finish_outliers(const FinishOutliers& call, Stream stream) {
  const Epilogue& e = call.sums.end;
  launch<finish_outliers_kernel>(
      {.grid = {grid_size(ceil_div(e.M, kOutlierRows) * ceil_div(e.N, kOutlierColumns))},
       .block = kOutlierThreads,
       .shared_bytes = OutliersShared().layout.bytes(),
       .stream = stream},
      call);
}

// The sums themselves, [M, N].
Epilogue only_sums(const Epilogue& end, int32_t* to) {
  Epilogue e;
  e.M = end.M;
  e.N = end.N;
  e.x_scale = end.x_scale;
  e.x_scale_row = end.x_scale_row;
  e.weight_scale = end.weight_scale;
  e.out = to;
  e.out_dtype = DType::i32;
  e.out_vector = vector_of(Rows{to, DType::i32, 1, {e.M}, {e.N}});
  return e;
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

  const Epilogue end = epilogue_of(p, scale, zero_point);
  FinishOutliers outliers = {{end}, p.x, layout.weight(p.packed), layout.row_bytes};
  FinishParts& parts = outliers.sums;
  int32_t* const part = piece(int32_t{}, plan.parts);
  parts.parts = part;
  parts.totals = piece(int64_t{}, plan.totals);
  const bool has_outliers = p.operand == Operand::outliers;
  if (has_outliers) {
    auto* const columns = piece(int32_t{}, plan.columns);
    auto* const count = piece(int32_t{}, plan.count);
    collect_outliers(extremes_of(p), plan.outliers, piece(char{}, plan.found), p.threshold,
                     piece(uint8_t{}, plan.left_out), columns, count, device.stream);
    outliers.count = count;
    outliers.columns = columns;
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
  if (plan.sm90) {
    ProductSm90 product = product_of(p, x, DType::i8, plan.x_row);
    if (!has_outliers) return gemm_sm90(product, *plan.sm90, end, device.stream);
    product.out = part;
    product.out_dtype = DType::i32;
    gemm_sm90(product, *plan.sm90, only_sums(end, part), device.stream);
    return finish_outliers(outliers, device.stream);
  }
  const int64_t depth = plan.gemm.splits * plan.gemm.split_steps * kDepth;  // of a round
  for (int64_t k = 0; k < p.K; k += depth) {
    GemmSm80 call = {end, plan.gemm};
    call.x = x + k;
    call.x_row = plan.x_row;
    call.K = std::min(depth, p.K - k);
    call.weight = layout.weight(p.packed) + k;
    call.weight_row = layout.row_bytes;
    call.weight_rows = layout.rows;
    call.parts = part;
    call.plan.splits = static_cast<uint32_t>(ceil_div(call.K, plan.gemm.split_steps * kDepth));
    gemm_sm80(call, device.stream);
    if (!part) return;
    parts.splits = call.plan.splits;
    parts.first = k == 0;
    parts.last = k + depth >= p.K;
    if (has_outliers && parts.last) return finish_outliers(outliers, device.stream);
    finish_parts(parts, device.stream);
  }
}

}  // namespace weft::int8::cuda
