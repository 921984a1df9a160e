// What the launches of linear layers share.
#pragma once

#include "int8/cuda/epilogue.h"
#include "int8/cuda/int8.h"

namespace weft::int8::cuda {

// What the products of p end with, by the scales of x that they take: p's own, or those of rows.
Epilogue epilogue_of(const Linear& p, const float* row_scale,
                     const int32_t* row_zero_point = nullptr);
void weight_only(const Linear& p, const Device& device);

}  // namespace weft::int8::cuda
