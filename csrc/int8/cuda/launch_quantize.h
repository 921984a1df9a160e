// Launching what a linear layer needs of the quantisers.
#pragma once

#include "gpu/plan.h"
#include "int8/cuda/plan.h"
#include "int8/cuda/quantize_call.h"

namespace weft::int8::cuda {

void quantize_rows(const QuantizeCall& call, const QuantizePlan& plan, gpu::Stream stream);
void collect_outliers(const Quantize& p, const QuantizePlan& plan, void* found, float threshold,
                      uint8_t* left_out, int32_t* columns, int32_t* count, gpu::Stream stream);

}  // namespace weft::int8::cuda
