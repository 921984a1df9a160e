// The norm family's schemas, and its functions under their names: for every library that registers
// them.
#pragma once

#include <torch/csrc/stable/library.h>

#include "norm/ops.h"

#define WEFT_NORM_PLAIN                                                           \
  "Tensor x, int normalized_ndim, Tensor? weight, Tensor? bias, float eps, bool " \
  "zero_centered_weight"
#define WEFT_NORM_FORWARD                                                                         \
  "Tensor x, int normalized_ndim, Tensor? weight, Tensor? bias, Tensor? weight1, Tensor? bias1, " \
  "Tensor? x_bias, "                                                                              \
  "Tensor? residual, Tensor? residual2, Tensor? x1, Tensor? rowscale, Tensor? layerscale, "       \
  "Tensor? rng_state, "                                                                           \
  "float dropout_p, float residual_alpha, float eps, bool is_rms_norm, bool "                     \
  "zero_centered_weight, "                                                                        \
  "bool memory_efficient, bool save_stats, bool return_residual, bool return_dropout_mask, "      \
  "ScalarType? residual_dtype, "                                                                  \
  "ScalarType? out_dtype"
#define WEFT_NORM_INT8                                                                    \
  "Tensor x, int normalized_ndim, Tensor? weight, Tensor? bias, Tensor? x_bias, Tensor? " \
  "residual, Tensor? residual2, "                                                         \
  "Tensor? shift, Tensor? smooth, Tensor? scale, int zero_point, bool symmetric, float "  \
  "residual_alpha, float eps, "                                                           \
  "bool is_rms_norm, bool zero_centered_weight, bool return_residual, ScalarType? residual_dtype"

namespace weft::norm {

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def("layer_norm(" WEFT_NORM_PLAIN ") -> Tensor");
  m.def("layer_norm.out(" WEFT_NORM_PLAIN ", *, Tensor(a!) out) -> ()");
  m.def("rms_norm(" WEFT_NORM_PLAIN ") -> Tensor");
  m.def("rms_norm.out(" WEFT_NORM_PLAIN ", *, Tensor(a!) out) -> ()");
  m.def(
      "fused_add_rms_norm_(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float eps, bool "
      "zero_centered_weight) -> ()");
  m.def(
      "add_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, bool "
      "is_rms_norm, bool zero_centered_weight, bool return_residual) -> (Tensor y, Tensor "
      "residual_out)");
  m.def("norm_forward(" WEFT_NORM_FORWARD
        ") -> (Tensor y, Tensor y1, Tensor residual_out, Tensor mean, Tensor rstd, Tensor mask, "
        "Tensor mask1)");
  m.def("norm_forward.out(" WEFT_NORM_FORWARD
        ", *, Tensor(a!) out, Tensor(b!)? residual_out) -> ()");
  m.def(
      "norm_backward(Tensor? dy, Tensor? dy1, Tensor? dresidual_out, Tensor saved, Tensor mean, "
      "Tensor rstd, "
      "int normalized_ndim, Tensor? weight, Tensor? bias, Tensor? weight1, Tensor? x, Tensor? "
      "x_bias, Tensor? rowscale, "
      "Tensor? layerscale, Tensor? rng_state, float dropout_p, float residual_alpha, float eps, "
      "bool is_rms_norm, "
      "bool zero_centered_weight, bool memory_efficient, ScalarType x_dtype, ScalarType? "
      "residual_dtype, int needs) -> "
      "(Tensor dx, Tensor dx1, Tensor dresidual, Tensor dresidual2, Tensor dweight, Tensor dbias, "
      "Tensor dweight1, "
      "Tensor dbias1, Tensor dx_bias, Tensor dlayerscale)");
  m.def("norm_int8(" WEFT_NORM_INT8
        ") -> (Tensor q, Tensor scale, Tensor zero_point, Tensor residual_out)");
  m.def("norm_int8.out(" WEFT_NORM_INT8
        ", *, Tensor(a!) out, Tensor(b!)? scale_out, Tensor(c!)? zero_point_out, Tensor(d!)? "
        "residual_out) -> ()");
  m.def("dropout_mask(Tensor rng_state, int numel, float p, int stream) -> Tensor");
}

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& m) {
  using Norm = Ops<Backend>;
  m.impl("layer_norm", TORCH_BOX(&Norm::template plain<false>));
  m.impl("layer_norm.out", TORCH_BOX(&Norm::template plain_out<false>));
  m.impl("rms_norm", TORCH_BOX(&Norm::template plain<true>));
  m.impl("rms_norm.out", TORCH_BOX(&Norm::template plain_out<true>));
  m.impl("fused_add_rms_norm_", TORCH_BOX(&Norm::fused_add_rms_norm_));
  m.impl("add_norm", TORCH_BOX(&Norm::add_norm));
  m.impl("norm_forward", TORCH_BOX(&Norm::forward));
  m.impl("norm_forward.out", TORCH_BOX(&Norm::forward_out));
  m.impl("norm_backward", TORCH_BOX(&Norm::backward));
  m.impl("norm_int8", TORCH_BOX(&Norm::int8));
  m.impl("norm_int8.out", TORCH_BOX(&Norm::int8_out));
  m.impl("dropout_mask", TORCH_BOX(&Norm::dropout_mask));
}

}  // namespace weft::norm
