// Launching the sm_90a product.
#pragma once

#include "gpu/launch.h"
#include "int8/cuda/epilogue.h"
#include "int8/cuda/plan_sm90.h"

namespace weft::int8::cuda {

void gemm_sm90(const ProductSm90& p, const PlanSm90& plan, const Epilogue& end, Stream stream);

}  // namespace weft::int8::cuda
