// The norm family's ops: torch tensors in, checks, allocation, params out. Written once; a backend
// supplies
//
//   what torch/call.h asks for, with workspace_bytes(const Forward& | const Backward&)
//   static void forward(const Forward&), backward(const Backward&);
//   static void dropout_mask(const Dropout&, int64_t count, int stream, bool* mask);
//
// All that is refused is refused here, so that a direct call of torch.ops.weft.* is memory-safe.
#pragma once

#include <forward_list>
#include <optional>
#include <tuple>
#include <utility>

#include "norm/params.h"
#include "torch/call.h"
#include "torch/dropout.h"

namespace weft::norm {

template <class Backend>
class Ops {
 public:
  // ---- layer_norm, rms_norm: inference

  template <bool kRms>
  static Tensor plain(Tensor x, int64_t ndim, OptionalTensor weight, OptionalTensor bias,
                      double eps, bool zero_centered) {
    Call call(kRms ? "rms_norm" : "layer_norm", x, ndim);
    Tensor y = call.new_rows(call.x_dtype);
    call.plain(kRms, weight, bias, eps, zero_centered, y, "y");
    return y;
  }

  template <bool kRms>
  static void plain_out(Tensor x, int64_t ndim, OptionalTensor weight, OptionalTensor bias,
                        double eps, bool zero_centered, Tensor out) {
    Call call(kRms ? "rms_norm" : "layer_norm", x, ndim);
    call.plain(kRms, weight, bias, eps, zero_centered, out, "out");
  }

  static void fused_add_rms_norm_(Tensor x, Tensor residual, OptionalTensor weight, double eps,
                                  bool zero_centered) {
    Call call("fused_add_rms_norm", x, 1);
    Forward p = call.forward(true, eps, zero_centered);
    p.residual = call.input(residual, "residual");
    p.weight = call.channels(weight, "weight");
    p.residual_out = call.output(residual, "residual");
    p.y = call.output(x, "x");
    call.check_places(p, "x", "residual");
    call.run(p);
  }

  // What norm_forward gives for a residual and nothing else, where nobody needs gradients: with its
  // 24 arguments and 7 results, a call of that takes longer than a row.
  static std::tuple<Tensor, Tensor> add_norm(Tensor x, Tensor residual, OptionalTensor weight,
                                             OptionalTensor bias, double eps, bool is_rms_norm,
                                             bool zero_centered, bool return_residual) {
    Call call("add_norm", x, 1);
    Forward p = call.forward(is_rms_norm, eps, zero_centered);
    p.residual = call.input(residual, "residual");
    p.z_dtype = p.residual.dtype;
    call.weights(p, weight, bias);
    Tensor y = call.new_rows(call.x_dtype);
    p.y = call.output(y, "y");
    Tensor residual_out = return_residual ? call.new_rows(p.z_dtype) : absent(x);
    if (return_residual) p.residual_out = call.output(residual_out, "residual_out");
    call.run(p);
    return {y, residual_out};
  }

  // ---- norm_forward

  using ForwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static ForwardOutputs forward(Tensor x, int64_t ndim, OptionalTensor weight, OptionalTensor bias,
                                OptionalTensor weight1, OptionalTensor bias1, OptionalTensor x_bias,
                                OptionalTensor residual, OptionalTensor residual2,
                                OptionalTensor x1, OptionalTensor rowscale,
                                OptionalTensor layerscale, OptionalTensor rng_state,
                                double dropout_p, double residual_alpha, double eps,
                                bool is_rms_norm, bool zero_centered, bool /*memory_efficient*/,
                                bool save_stats, bool return_residual, bool return_dropout_mask,
                                std::optional<ScalarType> residual_dtype,
                                std::optional<ScalarType> out_dtype) {
    Call call("norm_forward", x, ndim);
    Forward p = call.forward(is_rms_norm, eps, zero_centered);
    call.inputs(p, x_bias, residual, residual2, residual_alpha, residual_dtype);
    call.weights(p, weight, bias, weight1, bias1);
    p.x1 = call.input(x1, "x1", call.x_dtype);
    p.rowscale = call.per_row(rowscale, "rowscale");
    p.layerscale = call.channels(layerscale, "layerscale", 1);
    p.dropout = call.dropout(dropout_p, rng_state);

    const auto none = [&] {
      return absent(x);
    };  // a tensor of its own for each output, or they would alias
    Tensor y = call.new_rows(call.float_dtype(out_dtype, call.x_dtype, "out_dtype"));
    const bool second = weight1 || bias1;
    Tensor y1 = second ? call.new_rows(dtype_of(y)) : none();
    Tensor residual_out =
        return_residual ? call.new_rows(call.residual_dtype(residual_dtype, residual)) : none();
    Tensor mean = save_stats && !is_rms_norm ? call.new_per_row(acc_of(call.x_dtype)) : none();
    Tensor rstd = save_stats ? call.new_per_row(acc_of(call.x_dtype)) : none();
    Tensor mask = return_dropout_mask ? call.new_rows(DType::boolean) : none();
    Tensor mask1 = return_dropout_mask && x1 ? call.new_rows(DType::boolean) : none();

    p.y = call.output(y, "y");
    if (second) p.y1 = call.output(y1, "y1");
    if (return_residual) p.residual_out = call.output(residual_out, "residual_out");
    if (save_stats) p.rstd = {rstd.mutable_data_ptr(), dtype_of(rstd)};
    if (save_stats && !is_rms_norm) p.mean = {mean.mutable_data_ptr(), dtype_of(mean)};
    if (return_dropout_mask) {
      const Dropout dropout = p.dropout;
      if (dropout_p != 0) {
        p.mask = call.output(mask, "mask", DType::boolean);
        if (x1) p.mask1 = call.output(mask1, "mask1", DType::boolean);
      } else {  // nothing is drawn: all are kept
        Backend::dropout_mask(dropout, mask.numel(), 0,
                              static_cast<bool*>(mask.mutable_data_ptr()));
        if (x1)
          Backend::dropout_mask(dropout, mask1.numel(), 1,
                                static_cast<bool*>(mask1.mutable_data_ptr()));
      }
    }
    call.run(p);
    return {y, y1, residual_out, mean, rstd, mask, mask1};
  }

  static void forward_out(Tensor x, int64_t ndim, OptionalTensor weight, OptionalTensor bias,
                          OptionalTensor weight1, OptionalTensor bias1, OptionalTensor x_bias,
                          OptionalTensor residual, OptionalTensor residual2, OptionalTensor x1,
                          OptionalTensor rowscale, OptionalTensor layerscale,
                          OptionalTensor rng_state, double dropout_p, double residual_alpha,
                          double eps, bool is_rms_norm, bool zero_centered,
                          bool /*memory_efficient*/, bool /*save_stats*/, bool /*return_residual*/,
                          bool /*return_dropout_mask*/, std::optional<ScalarType> residual_dtype,
                          std::optional<ScalarType> /*out_dtype*/, Tensor out,
                          OptionalTensor residual_out) {
    Call call("norm_forward", x, ndim);
    check(!weight1 && !bias1,
          "weft.norm_forward: out takes one result, but weight1 or bias1 ask for a second");
    Forward p = call.forward(is_rms_norm, eps, zero_centered);
    call.inputs(p, x_bias, residual, residual2, residual_alpha, residual_dtype);
    call.weights(p, weight, bias, weight1, bias1);
    p.x1 = call.input(x1, "x1", call.x_dtype);
    p.rowscale = call.per_row(rowscale, "rowscale");
    p.layerscale = call.channels(layerscale, "layerscale", 1);
    p.dropout = call.dropout(dropout_p, rng_state);
    p.y = call.output(out, "out");
    if (residual_out) p.residual_out = call.output(*residual_out, "residual_out");
    call.check_places(p);
    call.run(p);
  }

  // ---- norm_backward

  enum Needs : int64_t {
    kDx = 1,
    kDx1 = 2,
    kDresidual = 4,
    kDresidual2 = 8,
    kDweight = 16,
    kDbias = 32,
    kDweight1 = 64,
    kDbias1 = 128,
    kDxBias = 256,
    kDlayerscale = 512
  };
  using BackwardOutputs =
      std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static BackwardOutputs backward(
      OptionalTensor dy, OptionalTensor dy1, OptionalTensor dresidual_out, Tensor saved,
      Tensor mean, Tensor rstd, int64_t ndim, OptionalTensor weight, OptionalTensor bias,
      OptionalTensor weight1, OptionalTensor x, OptionalTensor x_bias, OptionalTensor rowscale,
      OptionalTensor layerscale, OptionalTensor rng_state, double dropout_p, double residual_alpha,
      double eps, bool is_rms_norm, bool zero_centered, bool memory_efficient, ScalarType x_dtype,
      std::optional<ScalarType> residual_dtype, int64_t needs) {
    Call call("norm_backward", saved, ndim, "saved");
    Backward p;
    p.N = call.N;
    p.C = call.C;
    p.rms = is_rms_norm;
    p.zero_centered = zero_centered;
    p.from_output = memory_efficient;
    p.eps = eps;
    p.residual_alpha = residual_alpha;
    p.x_dtype = call.float_dtype(x_dtype, DType::f32, "x_dtype");
    p.dy = call.input(dy, "dy");
    p.dy1 = call.input(dy1, "dy1");
    p.dresidual_out = call.input(dresidual_out, "dresidual_out");
    p.saved = call.input(saved, "saved");
    p.rstd = call.statistics(rstd, "rstd", p.x_dtype);
    if (!is_rms_norm && !memory_efficient) p.mean = call.statistics(mean, "mean", p.x_dtype);
    p.weight = call.channels(weight, "weight");
    p.bias = call.channels(bias, "bias");
    p.weight1 = call.channels(weight1, "weight1");
    p.x = call.input(x, "x");
    p.x_bias = call.channels(x_bias, "x_bias", 1);
    p.rowscale = call.per_row(rowscale, "rowscale");
    p.layerscale = call.channels(layerscale, "layerscale", 1);
    p.dropout = call.dropout(dropout_p, rng_state);
    p.weight.heads = call.heads;
    check(!(needs & kDlayerscale) || (x && layerscale),
          "weft.norm_backward: the gradient of layerscale needs x and layerscale");

    const auto none = [&] {
      return absent(saved);
    };  // a tensor of its own for each output, or they would alias
    const DType residual_type = call.float_dtype(residual_dtype, call.x_dtype, "residual_dtype");
    const auto rows = [&](Needs need, DType dtype, Rows& to) {
      if (!(needs & need)) return none();
      Tensor t = call.new_rows(dtype);
      to = call.output(t, "a gradient");
      return t;
    };
    // The gradient of a vector over channels has the shape and dtype of `like`, or else of one head
    // in x's dtype.
    const auto vector = [&](Needs need, const OptionalTensor& like, bool headed, Channels& to) {
      if (!(needs & need)) return none();
      Sizes shape = like ? sizes_of(*like) : call.channel_sizes;
      if (!like && headed && call.heads > 1) shape = {call.heads, call.C};
      Tensor t = empty(shape, like ? dtype_of(*like) : p.x_dtype, saved);
      to = {t.mutable_data_ptr(), dtype_of(t), headed ? call.heads : 1};
      return t;
    };
    Tensor dx = rows(kDx, p.x_dtype, p.dx);
    Tensor dx1 = rows(kDx1, p.x_dtype, p.dx1);
    Tensor dresidual = rows(kDresidual, residual_type, p.dresidual);
    Tensor dresidual2 = rows(kDresidual2, residual_type, p.dresidual2);
    Tensor dweight = vector(kDweight, weight, true, p.dweight);
    Tensor dbias = vector(kDbias, bias ? bias : weight, true, p.dbias);
    Tensor dweight1 = vector(kDweight1, weight1, true, p.dweight1);
    Tensor dbias1 = vector(kDbias1, weight1, true, p.dbias1);
    Tensor dx_bias = vector(kDxBias, x_bias, false, p.dx_bias);
    Tensor dlayerscale = vector(kDlayerscale, layerscale, false, p.dlayerscale);
    call.run(p);
    return {dx, dx1, dresidual, dresidual2, dweight, dbias, dweight1, dbias1, dx_bias, dlayerscale};
  }

  // ---- norm_int8

  static std::tuple<Tensor, Tensor, Tensor, Tensor> int8(
      Tensor x, int64_t ndim, OptionalTensor weight, OptionalTensor bias, OptionalTensor x_bias,
      OptionalTensor residual, OptionalTensor residual2, OptionalTensor shift,
      OptionalTensor smooth, OptionalTensor scale, int64_t zero_point, bool symmetric,
      double residual_alpha, double eps, bool is_rms_norm, bool zero_centered, bool return_residual,
      std::optional<ScalarType> residual_dtype) {
    Call call("norm_int8", x, ndim);
    const auto or_none = [&](const OptionalTensor& t) { return t ? *t : absent(x); };
    Tensor q = call.new_rows(DType::i8);
    OptionalTensor scale_out, zero_point_out, residual_out;
    if (!scale) scale_out = empty(call.per_row_sizes(true), DType::f32, x);
    if (!scale && !symmetric) zero_point_out = empty(call.per_row_sizes(true), DType::i32, x);
    if (return_residual)
      residual_out = call.new_rows(call.residual_dtype(residual_dtype, residual));
    call.int8(weight, bias, x_bias, residual, residual2, shift, smooth, scale, zero_point,
              symmetric, residual_alpha, eps, is_rms_norm, zero_centered, q, scale_out,
              zero_point_out, residual_out, residual_dtype);
    return {q, or_none(scale_out), or_none(zero_point_out), or_none(residual_out)};
  }

  static void int8_out(Tensor x, int64_t ndim, OptionalTensor weight, OptionalTensor bias,
                       OptionalTensor x_bias, OptionalTensor residual, OptionalTensor residual2,
                       OptionalTensor shift, OptionalTensor smooth, OptionalTensor scale,
                       int64_t zero_point, bool symmetric, double residual_alpha, double eps,
                       bool is_rms_norm, bool zero_centered, bool /*return_residual*/,
                       std::optional<ScalarType> residual_dtype, Tensor out,
                       OptionalTensor scale_out, OptionalTensor zero_point_out,
                       OptionalTensor residual_out) {
    Call call("norm_int8", x, ndim);
    call.int8(weight, bias, x_bias, residual, residual2, shift, smooth, scale, zero_point,
              symmetric, residual_alpha, eps, is_rms_norm, zero_centered, out, scale_out,
              zero_point_out, residual_out, residual_dtype);
  }

  // ---- dropout_mask

  static Tensor dropout_mask(Tensor rng_state, int64_t numel, double p, int64_t stream) {
    check(numel >= 0, "weft.dropout_mask: numel is ", numel, ", expected at least 0");
    check(stream == 0 || stream == 1, "weft.dropout_mask: stream is ", stream,
          ", expected 0 (x) or 1 (x1)");
    const weft::Call<Backend> call("dropout_mask", rng_state, "rng_state");
    const Dropout dropout = read_dropout(call, p, rng_state);
    Tensor mask = empty({numel}, DType::boolean, rng_state);
    if (numel)
      Backend::dropout_mask(dropout, numel, static_cast<int>(stream),
                            static_cast<bool*>(mask.mutable_data_ptr()));
    return mask;
  }

 private:
  // One call, with its geometry.
  class Call : public weft::Call<Backend> {
    using Base = weft::Call<Backend>;

   public:
    using Base::fresh, Base::op;
    Sizes sizes, channel_sizes;
    int64_t ndim, N = 1, C = 1, heads = 1;
    DType x_dtype;

    // x sets the geometry, under whatever name the op has for it.
    Call(const char* op_name, const Tensor& x, int64_t normalized_ndim, const char* name = "x")
        : Base(op_name, x, name),
          sizes(sizes_of(x)),
          ndim(normalized_ndim),
          x_dtype(float_dtype(x, name)) {
      const int64_t dims = sizes.size();
      check(ndim >= 1 && ndim <= dims, "weft.", op, ": normalized_ndim is ", ndim,
            ", expected 1 to ", dims, " (the dimensions of ", name, ")");
      channel_sizes = Sizes(sizes.end() - ndim, sizes.end());
      for (int d = 0; d < dims; ++d) (d < dims - ndim ? N : C) *= sizes[d];
    }

    Forward forward(bool rms, double eps, bool zero_centered) {
      Forward p;
      p.N = N;
      p.C = C;
      p.rms = rms;
      p.eps = eps;
      p.zero_centered = zero_centered;
      p.x = input(first_, first_name_);
      return p;
    }

    // The terms of z, and its dtype: that of residual_out, or what is wished for, or residual's, or
    // x's.
    void inputs(Forward& p, const OptionalTensor& x_bias, const OptionalTensor& residual,
                const OptionalTensor& residual2, double residual_alpha,
                std::optional<ScalarType> wanted) {
      p.x_bias = channels(x_bias, "x_bias", 1);
      p.residual = input(residual, "residual");
      p.residual2 = residual ? input(residual2, "residual2", p.residual.dtype)
                             : input(residual2, "residual2");
      p.residual_alpha = residual_alpha;
      p.z_dtype = residual_dtype(wanted, residual);
    }

    void weights(Forward& p, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& weight1 = {}, const OptionalTensor& bias1 = {}) {
      p.weight = channels(weight, "weight");
      p.bias = channels(bias, "bias");
      p.weight1 = channels(weight1, "weight1");
      p.bias1 = channels(bias1, "bias1");
    }

    void plain(bool rms, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
               bool zero_centered, const Tensor& y, const char* name) {
      Forward p = forward(rms, eps, zero_centered);
      weights(p, weight, bias);
      p.y = output(y, name);
      check_places(p);
      run(p);
    }

    void int8(const OptionalTensor& weight, const OptionalTensor& bias,
              const OptionalTensor& x_bias, const OptionalTensor& residual,
              const OptionalTensor& residual2, const OptionalTensor& shift,
              const OptionalTensor& smooth, const OptionalTensor& scale, int64_t zero_point,
              bool symmetric, double residual_alpha, double eps, bool rms, bool zero_centered,
              const Tensor& q, const OptionalTensor& scale_out,
              const OptionalTensor& zero_point_out, const OptionalTensor& residual_out,
              std::optional<ScalarType> wanted) {
      Forward p = forward(rms, eps, zero_centered);
      inputs(p, x_bias, residual, residual2, residual_alpha, wanted);
      weights(p, weight, bias);
      if (residual_out) p.residual_out = output(*residual_out, "residual_out");
      p.int8.q = output(q, "out", DType::i8);
      p.int8.shift = channels(shift, "shift", 1);
      p.int8.smooth = channels(smooth, "smooth", 1);
      p.int8.symmetric = symmetric;
      if (scale) {
        check(dtype_of(*scale) == DType::f32 && scale->numel() == 1 && Backend::has(*scale, first_),
              "weft.", op, ": scale is ", name_of(dtype_of(*scale)), " ", sizes_of(*scale),
              ", expected one float32 on the device of x");
        check(zero_point >= -128 && zero_point <= 127, "weft.", op, ": zero_point is ", zero_point,
              ", expected -128 to 127");
        p.int8.scale = static_cast<const float*>(scale->const_data_ptr());
        p.int8.zero_point = static_cast<int32_t>(zero_point);
      } else {
        check(scale_out.has_value(), "weft.", op, ": a dynamic scale needs scale_out");
        check(symmetric || zero_point_out, "weft.", op,
              ": asymmetric dynamic scales need zero_point_out");
        p.int8.scale_out = static_cast<float*>(per_row_output(*scale_out, "scale_out", DType::f32));
        if (zero_point_out)
          p.int8.zero_point_out =
              static_cast<int32_t*>(per_row_output(*zero_point_out, "zero_point_out", DType::i32));
      }
      check_places(p);
      run(p);
    }

    // ---- inputs

    Rows input(const OptionalTensor& t, const char* name, std::optional<DType> dtype = {}) {
      if (!t) return {};
      const DType type = check_rows(*t, name);
      check(dtype ? type == *dtype : Backend::takes(type), "weft.", op, ": ", name, " has dtype ",
            name_of(type), ", expected ", dtype ? name_of(*dtype) : Backend::dtypes);
      Rows rows;
      if (!view(*t, rows)) view(contiguous(*t), rows);
      return rows;
    }

    // A vector over the channels; or, with one normalised dimension, one for each index of the
    // dimension before it.
    Channels channels(const OptionalTensor& t, const char* name, int64_t most_heads = INT64_MAX) {
      if (!t) return {};
      const DType type = float_dtype(*t, name);
      const Sizes shape = sizes_of(*t);
      const bool per_head = most_heads > 1 && ndim == 1 && sizes.size() >= 2 &&
                            shape == Sizes(sizes.end() - 2, sizes.end());
      const int64_t own = per_head ? shape[0] : 1;
      check(per_head || shape == channel_sizes, "weft.", op, ": ", name, " has shape ", shape,
            ", expected ", channel_sizes, " (the last ", ndim == 1 ? "dimension" : "dimensions",
            " of ", first_name_, ")");
      if (most_heads > 1) {
        check(!headed_ || own == heads, "weft.", op, ": ", name, " has shape ", shape,
              ", expected that of the other weights");
        headed_ = true;
        heads = own;
      }
      return {const_cast<void*>(contiguous(*t).const_data_ptr()), type, own};
    }

    PerRow per_row(const OptionalTensor& t, const char* name) {
      if (!t) return {};
      const DType type = float_dtype(*t, name);
      check(sizes_of(*t) == per_row_sizes(false), "weft.", op, ": ", name, " has shape ",
            sizes_of(*t), ", expected ", per_row_sizes(false), " (the leading dimensions of ",
            first_name_, ")");
      return {const_cast<void*>(contiguous(*t).const_data_ptr()), type};
    }

    // mean and rstd as forward returned them.
    PerRow statistics(const Tensor& t, const char* name, DType dtype) {
      check(Backend::has(t, first_) && dtype_of(t) == acc_of(dtype) && t.numel() == N &&
                t.is_contiguous(),
            "weft.", op, ": ", name, " is ", name_of(dtype_of(t)), " ", sizes_of(t),
            ", expected contiguous ", name_of(acc_of(dtype)), " ", per_row_sizes(false));
      return {const_cast<void*>(t.const_data_ptr()), acc_of(dtype)};
    }

    Dropout dropout(double p, const OptionalTensor& rng_state) const {
      return read_dropout(*this, p, rng_state);
    }

    // ---- outputs

    // Rows to be written. What is not contiguous within its rows is written to a copy first.
    Rows output(const Tensor& t, const char* name, std::optional<DType> dtype = {}) {
      const DType type = check_rows(t, name);
      check(dtype ? type == *dtype : Backend::takes(type), "weft.", op, ": ", name, " has dtype ",
            name_of(type), ", expected ", dtype ? name_of(*dtype) : Backend::dtypes);
      check_no_repeats(t, name, "so it cannot be written");
      Rows rows;
      if (view(t, rows)) {
        check(rows.ndim > 1 || rows.size[0] <= 1 || rows.stride[0] >= C, "weft.", op, ": ", name,
              " repeats elements in memory, so it cannot be written");
        return rows;
      }
      copies_.push_front({t, empty(sizes, type, t)});
      view(copies_.front().second, rows);
      return rows;
    }

    // A result may take the place of an input, row for row, and nothing else that overlaps: a kernel
    // may have written what it has yet to read. Says so where it is certain; rows that interleave
    // in several dimensions are taken at their word, as torch does.
    void check_places(const Forward& p, const char* y = "out",
                      const char* residual_out = "residual_out") const {
      struct Place {
        const Rows& rows;
        const char* name;
      };
      const Place inputs[] = {
          {p.x, first_name_}, {p.residual, "residual"}, {p.residual2, "residual2"}, {p.x1, "x1"}};
      const Place outputs[] = {{p.y, y}, {p.int8.q, y}, {p.residual_out, residual_out}};
      for (const Place& out : outputs)
        for (const Place& in : inputs)
          check(same(out.rows, in.rows) || !overlap(out.rows, in.rows), "weft.", op, ": ", out.name,
                " and ", in.name, " overlap in memory, expected the same elements or none");
      for (const Place& out : {outputs[0], outputs[1]})
        check(!overlap(out.rows, p.residual_out), "weft.", op, ": ", out.name, " and ",
              residual_out, " overlap in memory, expected tensors of their own");
    }

    Tensor new_rows(DType dtype) { return fresh(sizes, dtype); }
    Tensor new_per_row(DType dtype) { return fresh(per_row_sizes(false), dtype); }

    Sizes per_row_sizes(bool keepdim) const {
      Sizes shape(sizes.begin(), sizes.end() - ndim);
      for (int64_t d = 0; keepdim && d < ndim; ++d) shape.push_back(1);
      return shape;
    }

    using Base::float_dtype;
    DType float_dtype(std::optional<ScalarType> wanted, DType otherwise, const char* name) const {
      if (!wanted) return otherwise;
      const DType type = dtype_of(*wanted);
      check(Backend::takes(type), "weft.", op, ": ", name, " is ", name_of(type), ", expected ",
            Backend::dtypes);
      return type;
    }
    DType residual_dtype(std::optional<ScalarType> wanted, const OptionalTensor& residual) const {
      return float_dtype(wanted, residual ? dtype_of(*residual) : x_dtype, "residual_dtype");
    }

    void run(Forward& p) {
      if (p.residual_out) p.z_dtype = p.residual_out.dtype;
      run(p, Backend::forward);
    }
    void run(Backward& p) { run(p, Backend::backward); }

   private:
    using Base::check_device, Base::check_no_repeats, Base::contiguous;
    using Base::first_, Base::first_name_;

    template <class Params>
    void run(Params& p, void (*kernel)(const Params&)) {
      Base::run(p, kernel);
      for (auto& [to, from] : copies_) torch::stable::copy_(to, from);
    }

    DType check_rows(const Tensor& t, const char* name) const {
      check_device(t, name);
      check(sizes_of(t) == sizes, "weft.", op, ": ", name, " has shape ", sizes_of(t),
            ", expected ", sizes, " (that of ", first_name_, ")");
      return dtype_of(t);
    }

    void* per_row_output(const Tensor& t, const char* name, DType dtype) const {
      check(Backend::has(t, first_) && dtype_of(t) == dtype && t.numel() == N && t.is_contiguous(),
            "weft.", op, ": ", name, " is ", name_of(dtype_of(t)), " ", sizes_of(t),
            ", expected contiguous ", name_of(dtype), " ", per_row_sizes(true));
      return t.mutable_data_ptr();
    }

    bool view(const Tensor& t, Rows& rows) const {
      return view_rows(t, sizes.size() - static_cast<int>(ndim), rows);
    }

    static bool same(const Rows& a, const Rows& b) {
      return a.data == b.data && a.dtype == b.dtype && a.ndim == b.ndim &&
             std::equal(a.size, a.size + a.ndim, b.size) &&
             std::equal(a.stride, a.stride + a.ndim, b.stride);
    }

    bool overlap(const Rows& a, const Rows& b) const {
      if (!a || !b || N * C == 0) return false;
      const auto bytes = [](const Rows& rows, int64_t elements) {
        return elements * static_cast<int64_t>(size_of(rows.dtype));
      };
      const auto extent = [&](const Rows& rows) {
        int64_t last = C;
        for (int d = 0; d < rows.ndim; ++d) last += (rows.size[d] - 1) * rows.stride[d];
        return bytes(rows, N == 1 ? C : last);
      };
      const int64_t distance = static_cast<char*>(b.data) - static_cast<char*>(a.data);
      if (distance >= extent(a) || -distance >= extent(b)) return false;
      if (N == 1) return true;
      if (a.ndim > 1 || b.ndim > 1) return false;
      const int64_t pitch = bytes(a, a.stride[0]);
      if (pitch != bytes(b, b.stride[0]))  // one of them without gaps for the other's rows
        return a.stride[0] == C || b.stride[0] == C;
      const int64_t offset = (distance % pitch + pitch) % pitch;
      return offset < bytes(a, C) || offset + bytes(b, C) > pitch;
    }

    bool headed_ = false;
    std::forward_list<std::pair<Tensor, Tensor>> copies_;
  };
};

}  // namespace weft::norm
