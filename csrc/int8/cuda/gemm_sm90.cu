// Launches the kernels of gemm_sm90.h.
#include "int8/cuda/gemm_sm90.h"

#include "int8/cuda/launch_sm90.h"
#include "int8/cuda/weight_only_sm90.h"

namespace weft::int8::cuda {
namespace {

// A matrix in rows, in boxes of 128 bytes of so many of them.
TensorMap map_of(const void* data, DType dtype, int64_t row_bytes, int64_t rows, int64_t columns,
                 uint32_t box_rows) {
  TensorDescription d;
  d.data = const_cast<void*>(data);
  d.dtype = dtype;
  d.ndim = 2;
  d.size[0] = static_cast<uint64_t>(columns), d.size[1] = static_cast<uint64_t>(rows);
  d.stride[0] = static_cast<uint64_t>(row_bytes);
  d.box[0] = static_cast<uint32_t>(128 / size_of(dtype)), d.box[1] = box_rows;
  d.swizzle = Swizzle::bytes128;
  return make_tensor_map(d);
}

template <class S>
struct Launch {
  const ProductSm90& p;
  const GemmSm90 call;
  const TensorMap x, weight;
  const LaunchConfig config;

  Launch(const ProductSm90& product, const PlanSm90& plan, const Epilogue& end, Stream stream)
      : p(product),
        call{end, plan.raster, static_cast<uint32_t>(ceil_div<int64_t>(p.K, S::kDepth)),
             plan.splits, plan.tensor_out},
        x(map_of(p.x, p.x_dtype, p.x_row, p.M, p.K, S::kRows)),
        weight(map_of(p.weight, DType::i8, p.weight_row, p.N, p.K, S::kColumns / S::kPair)),
        config{.grid = {plan.grid},
               .block = S::kThreads,
               .cluster = {S::kPair > 1 ? S::kPair : plan.splits},
               .shared_bytes = shared_bytes(),
               .stream = stream,
               .dependent = true} {}

  void in_registers() const {
    const int64_t row = p.N * static_cast<int64_t>(size_of(p.out_dtype));
    launch<gemm_sm90_registers_kernel<S>>(
        config, x, weight,
        call.tensor_out ? map_of(p.out, p.out_dtype, row, p.M, p.N, 16) : TensorMap{}, call);
  }
  template <template <class> class Multiply>
  void in_shared() const {
    launch<gemm_sm90_shared_kernel<S, Multiply>>(config, S::kSwapped ? weight : x,
                                                 S::kSwapped ? x : weight, call);
  }

 private:
  static uint32_t shared_bytes() {
    const Tiles<S> smem;
    return smem.layout.bytes();
  }
};

template <class X, uint32_t kRows>
void weight_only(const ProductSm90& p, const PlanSm90& plan, const Epilogue& end, Stream stream) {
  using S = WeightOnlyShape<X, kRows>;
  Launch<S>(p, plan, end, stream).template in_shared<WideningMultiplier>();
}

}  // namespace

void gemm_sm90(const ProductSm90& p, const PlanSm90& plan, const Epilogue& end, Stream stream) {
  switch (plan.shape) {
    case ShapeSm90::wide:
      return Launch<Shape<ShapeSm90::wide>>(p, plan, end, stream).in_registers();
    case ShapeSm90::square:
      return Launch<Shape<ShapeSm90::square>>(p, plan, end, stream).in_shared<Multiplier>();
    case ShapeSm90::few64:
      return Launch<Shape<ShapeSm90::few64>>(p, plan, end, stream).in_shared<Multiplier>();
    case ShapeSm90::few16:
      return Launch<Shape<ShapeSm90::few16>>(p, plan, end, stream).in_shared<Multiplier>();
    case ShapeSm90::weight_only64:
      return p.x_dtype == DType::bf16 ? weight_only<bf16, 64>(p, plan, end, stream)
                                      : weight_only<f16, 64>(p, plan, end, stream);
    case ShapeSm90::weight_only128:
      return p.x_dtype == DType::bf16 ? weight_only<bf16, 128>(p, plan, end, stream)
                                      : weight_only<f16, 128>(p, plan, end, stream);
  }
}

}  // namespace weft::int8::cuda
