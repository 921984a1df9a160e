// The INT8 family's schemas, and its functions under their names: for every library that registers
// them.
#pragma once

#include <torch/csrc/stable/library.h>

#include "int8/ops.h"

namespace weft::int8 {

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def(
      "int8_quantize(Tensor x, Tensor? scale, Tensor? zero_point, Tensor? shift, Tensor? smooth, "
      "str activation, str granularity, int group_size, bool symmetric, bool transposed) -> "
      "(Tensor "
      "values, Tensor scale, Tensor zero_point)");
  m.def(
      "int8_dequantize(Tensor values, Tensor scale, Tensor? zero_point, str granularity, int "
      "group_size, ScalarType dtype) -> Tensor");
  m.def("int8_pack(Tensor weight, int bits) -> Tensor");
  m.def("int8_unpack(Tensor packed, int n, int k, int bits) -> Tensor");
  m.def(
      "int8_linear(Tensor x, Tensor packed, Tensor weight_scale, Tensor? x_scale, Tensor? "
      "x_zero_point, Tensor? shift, Tensor? smooth, Tensor? bias, Tensor? residual, Tensor? "
      "out_scale, int out_zero_point, str activation, bool symmetric, ScalarType out_dtype) -> "
      "Tensor");
  m.def(
      "weight_only_linear(Tensor x, Tensor packed, Tensor weight_scale, Tensor? weight_zero_point, "
      "Tensor? bias, Tensor? residual, str activation, int bits) -> Tensor");
  m.def(
      "llm_int8_linear(Tensor x, Tensor packed, Tensor weight_scale, Tensor? bias, Tensor? "
      "residual, Tensor? weight, str activation, float threshold) -> Tensor");
}

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& m) {
  using Int8 = Ops<Backend>;
  m.impl("int8_quantize", TORCH_BOX(&Int8::quantize));
  m.impl("int8_dequantize", TORCH_BOX(&Int8::dequantize));
  m.impl("int8_pack", TORCH_BOX(&Int8::pack));
  m.impl("int8_unpack", TORCH_BOX(&Int8::unpack));
  m.impl("int8_linear", TORCH_BOX(&Int8::linear));
  m.impl("weight_only_linear", TORCH_BOX(&Int8::weight_only));
  m.impl("llm_int8_linear", TORCH_BOX(&Int8::llm_int8));
}

}  // namespace weft::int8
