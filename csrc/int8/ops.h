// The INT8 family's ops: torch tensors in, checks, allocation, params out. Written once; a backend
// supplies
//
//   what torch/call.h asks for, with workspace_bytes(const Quantize& | const Linear&)
//   static void quantize(const Quantize&), dequantize(const Dequantize&), linear(const Linear&);
//   static int64_t packed_bytes(int64_t N, int64_t K, int bits);
//   static PackedHeader packed_header(int64_t N, int64_t K, int bits);
//   static constexpr int64_t packed_alignment;          of a packed weight's address, in bytes
//   static void pack(const Pack&), unpack(const Unpack&);
//   static constexpr bool reads_values;                 the host reads what tensors hold
//
// Zero points beyond -128 … 127, with which integers overflow, and packed weights of another shape but
// the same length are refused where reads_values, and where WEFT_CHECK=1 has them copied to the host.
// All that is refused is refused here, so that a direct call of torch.ops.weft.* is memory-safe.
#pragma once

#include <cstring>
#include <string>
#include <tuple>

#include "int8/packed.h"
#include "int8/params.h"
#include "torch/call.h"

namespace weft::int8 {

constexpr int64_t kMostGroup = 1 << 16;    // whose sums fit int32
constexpr int64_t kMostColumns = 1 << 24;  // of a weight, whose own sums do

template <class Backend>
class Ops {
 public:
  // ---- int8_quantize

  static std::tuple<Tensor, Tensor, Tensor> quantize(Tensor x, OptionalTensor scale,
                                                     OptionalTensor zero_point,
                                                     OptionalTensor shift, OptionalTensor smooth,
                                                     std::string activation,
                                                     std::string granularity, int64_t group_size,
                                                     bool symmetric, bool transposed) {
    Call call("int8_quantize", x, "x");
    Quantize p;
    p.activation = call.activation(activation, /*gated=*/true);
    p.x = call.floats_by_row(x, "x");
    Sizes sizes = call.with_channels(x, "x");
    int64_t& C = sizes[sizes.size() - 1];
    if (p.activation == Activation::silu_mul) {
      check(C % 2 == 0, "weft.int8_quantize: x has shape ", sizes_of(x),
            ", expected an even last dimension for silu_mul");
      C /= 2;
    }
    p.C = C;
    p.N = product(sizes, sizes.size() - 1);
    p.smoothing = call.smoothing(shift, smooth, p.C);
    p.symmetric = symmetric;
    p.dynamic = !scale;
    const Sizes grid = call.grid(p.grid, sizes, granularity, group_size);
    p.scales = product(grid, grid.size());
    check(scale || !zero_point, "weft.int8_quantize: zero_point belongs to a scale, expected both");

    Tensor scales = scale ? absent(x) : call.fresh(grid, DType::f32);
    Tensor points = scale || symmetric ? absent(x) : call.fresh(grid, DType::i32);
    if (scale) {
      p.scale = const_cast<float*>(static_cast<const float*>(
          call.vector(*scale, "scale", DType::f32, grid, "as the granularity has them")));
      if (zero_point)
        p.zero_point = const_cast<int32_t*>(call.zero_points(
            *zero_point, call.vector(*zero_point, "zero_point", DType::i32, grid, "that of scale"),
            "zero_point"));
    } else {
      p.scale = static_cast<float*>(scales.mutable_data_ptr());
      if (!symmetric) p.zero_point = static_cast<int32_t*>(points.mutable_data_ptr());
    }
    p.transposed = transposed;
    Tensor q = call.fresh(transposed ? Sizes{p.C, p.N} : sizes, DType::i8);
    p.q = static_cast<int8_t*>(q.mutable_data_ptr());
    call.run(p, Backend::quantize);
    return {q, scales, points};
  }

  // ---- int8_dequantize

  static Tensor dequantize(Tensor values, Tensor scale, OptionalTensor zero_point,
                           std::string granularity, int64_t group_size, ScalarType dtype) {
    Call call("int8_dequantize", values, "values");
    call.check_dtype(values, "values", DType::i8);
    Dequantize p;
    p.dtype = call.out_dtype(dtype);
    p.q = call.by_row(values);
    const Sizes sizes = call.with_channels(values, "values");
    p.C = sizes[sizes.size() - 1];
    p.N = product(sizes, sizes.size() - 1);
    const Sizes grid = call.grid(p.grid, sizes, granularity, group_size);
    p.scale = static_cast<const float*>(
        call.vector(scale, "scale", DType::f32, grid, "as the granularity has them"));
    if (zero_point)
      p.zero_point = static_cast<const int32_t*>(
          call.vector(*zero_point, "zero_point", DType::i32, grid, "that of scale"));
    Tensor x = call.fresh(sizes, p.dtype);
    p.x = x.mutable_data_ptr();
    if (values.numel() > 0) Backend::dequantize(p);
    return x;
  }

  // ---- int8_pack, int8_unpack

  static Tensor pack(Tensor weight, int64_t bits) {
    Call call("int8_pack", weight, "weight");
    call.check_dtype(weight, "weight", DType::i8);
    call.check_bits(bits);
    check(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) >= 1,
          "weft.int8_pack: weight has shape ", sizes_of(weight),
          ", expected [N, K] of at least one each");
    check(weight.size(1) <= kMostColumns, "weft.int8_pack: weight has shape ", sizes_of(weight),
          ", expected at most ", kMostColumns, " columns");
    Pack p = {weight.size(0),
              weight.size(1),
              static_cast<int>(bits),
              static_cast<const int8_t*>(weight.const_data_ptr()),
              weight.stride(0),
              weight.stride(1),
              nullptr};
    Tensor packed = call.fresh({Backend::packed_bytes(p.N, p.K, p.bits)}, DType::u8);
    p.packed = packed.mutable_data_ptr();
    Backend::pack(p);
    return packed;
  }

  static Tensor unpack(Tensor packed, int64_t n, int64_t k, int64_t bits) {
    Call call("int8_unpack", packed, "packed");
    call.check_bits(bits);
    check(n >= 1 && k >= 1, "weft.int8_unpack: n and k are ", n, " and ", k,
          ", expected at least 1");
    call.check_packed(packed, n, k, static_cast<int>(bits));
    Tensor weight = call.fresh({n, k}, DType::i8);
    Backend::unpack({n, k, static_cast<int>(bits), packed.const_data_ptr(),
                     static_cast<int8_t*>(weight.mutable_data_ptr())});
    return weight;
  }

  // ---- int8_linear

  static Tensor linear(Tensor x, Tensor packed, Tensor weight_scale, OptionalTensor x_scale,
                       OptionalTensor x_zero_point, OptionalTensor shift, OptionalTensor smooth,
                       OptionalTensor bias, OptionalTensor residual, OptionalTensor out_scale,
                       int64_t out_zero_point, std::string activation, bool symmetric,
                       ScalarType out_dtype) {
    Call call("int8_linear", x, "x");
    Linear p;
    const bool given = dtype_of(x) == DType::i8;
    call.problem(p, x, packed, weight_scale, 8, given);
    check(weight_scale.dim() == 1, "weft.int8_linear: weight_scale has shape ",
          sizes_of(weight_scale), ", expected [N]");
    check(!given || x_scale, "weft.int8_linear: x is int8, so x_scale is needed");
    check(!given || (!shift && !smooth),
          "weft.int8_linear: x is int8, so shift and smooth have been applied, or are too late");
    check(x_scale || !x_zero_point,
          "weft.int8_linear: x_zero_point belongs to an x_scale, expected both");
    check(symmetric || !x_scale,
          "weft.int8_linear: symmetric is false, which is of dynamic scales, and x_scale is given: "
          "expected one of them");
    p.symmetric = symmetric;
    p.smoothing = call.smoothing(shift, smooth, p.K);
    if (x_scale) {
      const bool by_row = given && x_scale->numel() != 1;
      p.x_scale_row = by_row ? 1 : 0;
      p.x_scale = static_cast<const float*>(
          call.numbers(*x_scale, "x_scale", DType::f32, by_row ? p.M : 1));
      if (x_zero_point)
        p.x_zero_point = call.zero_points(
            *x_zero_point,
            call.numbers(*x_zero_point, "x_zero_point", DType::i32, by_row ? p.M : 1),
            "x_zero_point");
    }
    call.ending(p, bias, residual, activation);
    check(out_scale || out_zero_point == 0,
          "weft.int8_linear: out_zero_point belongs to an out_scale, expected both");

    p.out_dtype = dtype_of(out_dtype);
    if (p.out_dtype == DType::i32) {
      check(given && p.K <= kMostGroup && !bias && !residual && !out_scale &&
                p.activation == Activation::none,
            "weft.int8_linear: out_dtype is int32, the sums as they are: expected an int8 x of at "
            "most ",
            kMostGroup, " columns, and neither bias, activation, residual nor out_scale");
    } else if (p.out_dtype == DType::i8) {
      check(out_scale.has_value(), "weft.int8_linear: out_dtype is int8, so out_scale is needed");
      p.out_scale = static_cast<const float*>(call.numbers(*out_scale, "out_scale", DType::f32, 1));
      check(out_zero_point >= -128 && out_zero_point <= 127, "weft.int8_linear: out_zero_point is ",
            out_zero_point, ", expected -128 to 127");
      p.out_zero_point = static_cast<int32_t>(out_zero_point);
    } else {
      p.out_dtype = call.out_dtype(out_dtype);
      check(!out_scale, "weft.int8_linear: out_scale is given, expected an out_dtype of int8");
    }
    return call.linear(p);
  }

  // ---- weight_only_linear

  static Tensor weight_only(Tensor x, Tensor packed, Tensor weight_scale,
                            OptionalTensor weight_zero_point, OptionalTensor bias,
                            OptionalTensor residual, std::string activation, int64_t bits) {
    Call call("weight_only_linear", x, "x");
    Linear p;
    call.check_bits(bits);
    call.problem(p, x, packed, weight_scale, static_cast<int>(bits), /*given=*/false);
    p.operand = Operand::wide;
    if (weight_zero_point) {
      call.check_dtype(*weight_zero_point, "weight_zero_point", DType::f32);
      call.check_shape(*weight_zero_point, "weight_zero_point", sizes_of(weight_scale),
                       "that of weight_scale");
      p.weight_zero_point = call.group_values(*weight_zero_point);
    }
    call.ending(p, bias, residual, activation);
    p.out_dtype = p.x.dtype;
    return call.linear(p);
  }

  // ---- llm_int8_linear

  static Tensor llm_int8(Tensor x, Tensor packed, Tensor weight_scale, OptionalTensor bias,
                         OptionalTensor residual, OptionalTensor weight, std::string activation,
                         double threshold) {
    Call call("llm_int8_linear", x, "x");
    Linear p;
    call.problem(p, x, packed, weight_scale, 8, /*given=*/false);
    if (weight)  // which takes a gradient, and no part in the result
      call.vector(*weight, "weight", call.float_dtype(*weight, "weight"), {p.N, p.K}, "N, K");
    check(weight_scale.dim() == 1, "weft.llm_int8_linear: weight_scale has shape ",
          sizes_of(weight_scale), ", expected [N]");
    check(threshold >= 0, "weft.llm_int8_linear: threshold is ", threshold,
          ", expected at least 0 (0: no outliers)");
    p.operand = threshold > 0 ? Operand::outliers : Operand::int8;
    p.threshold = static_cast<float>(threshold);
    call.ending(p, bias, residual, activation);
    p.out_dtype = p.x.dtype;
    return call.linear(p);
  }

 private:
  static int64_t product(const Sizes& sizes, int count) {
    int64_t all = 1;
    for (int d = 0; d < count; ++d) all *= sizes[d];
    return all;
  }

  class Call : public weft::Call<Backend> {
    using Base = weft::Call<Backend>;

   public:
    using Base::Base, Base::op;
    using Base::check_dtype, Base::check_shape, Base::float_dtype, Base::fresh, Base::run;

    // ---- one tensor

    Sizes with_channels(const Tensor& t, const char* name) const {
      const Sizes sizes = sizes_of(t);
      check(sizes.size() >= 1 && sizes[sizes.size() - 1] >= 1, "weft.", op, ": ", name,
            " has shape ", sizes, ", expected a last dimension of at least 1");
      return sizes;
    }

    Rows by_row(const Tensor& t) {
      const int leading = static_cast<int>(t.dim()) - 1;
      Rows rows;
      if (leading < 0 || view_rows(t, leading, rows)) return rows;
      view_rows(contiguous(t), leading, rows);
      return rows;
    }
    Rows floats_by_row(const Tensor& t, const char* name) {
      float_dtype(t, name);
      return by_row(t);
    }

    // Of this dtype and shape.
    const void* vector(const Tensor& t, const char* name, DType dtype, const Sizes& shape,
                       const char* what) {
      check_dtype(t, name, dtype);
      check_shape(t, name, shape, what);
      return contiguous(t).const_data_ptr();
    }
    // So many of this dtype, in any shape.
    const void* numbers(const Tensor& t, const char* name, DType dtype, int64_t count) {
      check_dtype(t, name, dtype);
      check(t.numel() == count, "weft.", op, ": ", name, " has shape ", sizes_of(t), ", expected ",
            count, count == 1 ? " element" : " elements");
      return contiguous(t).const_data_ptr();
    }

    // t's, which lie at `data` one after the other.
    const int32_t* zero_points(const Tensor& t, const void* data, const char* name) const {
      if constexpr (Backend::reads_values)
        check_zero_points(data, t.numel(), name);
      else if (is_checked())
        check_zero_points(on_host(t).const_data_ptr(), t.numel(), name);
      return static_cast<const int32_t*>(data);
    }

    Smoothing smoothing(const OptionalTensor& shift, const OptionalTensor& smooth, int64_t C) {
      Smoothing s;
      if (shift)
        s.shift = static_cast<const float*>(
            vector(*shift, "shift", DType::f32, {C}, "the last dimension of x"));
      if (smooth)
        s.smooth = static_cast<const float*>(
            vector(*smooth, "smooth", DType::f32, {C}, "the last dimension of x"));
      return s;
    }

    // ---- options

    Activation activation(const std::string& name, bool gated) const {
      constexpr const char* names[] = {"none", "relu", "gelu", "gelu_tanh", "silu", "silu_mul"};
      for (int i = 0; i < (gated ? 6 : 5); ++i)
        if (name == names[i]) return static_cast<Activation>(i);
      fail("weft.", op, ": activation is ", name, ", expected none, relu, gelu, gelu_tanh",
           gated ? ", silu or silu_mul" : " or silu");
    }

    void check_bits(int64_t bits) const {
      check(bits == 8 || bits == 4, "weft.", op, ": bits is ", bits, ", expected 8 or 4");
    }

    DType out_dtype(ScalarType dtype) const {
      const DType type = dtype_of(dtype);
      check(Backend::takes(type), "weft.", op, ": the result's dtype is ", name_of(type),
            ", expected ", Backend::dtypes);
      return type;
    }

    // Which scale belongs to which element; returns the shape of all scales.
    Sizes grid(ScaleGrid& g, const Sizes& sizes, const std::string& granularity,
               int64_t group_size) const {
      const int last = sizes.size() - 1;
      const int64_t C = sizes[last];
      Sizes shape(sizes.begin(), sizes.end());
      if (granularity == "tensor") {
        g = {0, C};
        return {};
      }
      if (granularity == "channel") {
        g = {0, 1};
        return {C};
      }
      if (granularity == "group") {
        check(group_size >= 1 && C % group_size == 0, "weft.", op, ": group_size is ", group_size,
              ", expected a divisor of the last dimension, ", C);
        g = {C / group_size, group_size};
        shape[last] = g.row;
        return shape;
      }
      check(granularity == "token", "weft.", op, ": granularity is ", granularity,
            ", expected tensor, token, channel or group");
      g = {1, C};
      shape[last] = 1;
      return shape;
    }

    // ---- linear

    void check_packed(const Tensor& packed, int64_t N, int64_t K, int bits) const {
      check_dtype(packed, "packed", DType::u8);
      const int64_t bytes = Backend::packed_bytes(N, K, bits);
      check(packed.dim() == 1 && packed.numel() == bytes && packed.is_contiguous(), "weft.", op,
            ": packed has shape ", sizes_of(packed), ", expected [", bytes,
            "], contiguous (a packed [", N, ", ", K, "] weight of ", bits,
            " bits; each kind of device has a form of its own: pack it there)");
      check(reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % Backend::packed_alignment == 0,
            "weft.", op, ": packed is a view that begins between multiples of ",
            Backend::packed_alignment, " bytes, expected a copy of its own");
      const PackedHeader expected = Backend::packed_header(N, K, bits);
      if constexpr (Backend::reads_values) {
        check_header(packed.const_data_ptr(), expected);
      } else if (is_checked()) {
        Tensor begin = packed;
        begin = on_host(torch::stable::narrow(begin, 0, 0, sizeof expected));
        check_header(begin.const_data_ptr(), expected);
      }
    }

    void problem(Linear& p, const Tensor& x, const Tensor& packed, const Tensor& weight_scale,
                 int bits, bool given) {
      const Sizes sizes = with_channels(x, "x");
      p.x = given ? by_row(x) : floats_by_row(x, "x");
      p.K = sizes[sizes.size() - 1];
      p.M = product(sizes, sizes.size() - 1);
      check(p.M <= INT32_MAX && p.K <= INT32_MAX, "weft.", op, ": x has shape ", sizes,
            ", expected at most ", INT32_MAX, " rows and columns");
      check_dtype(weight_scale, "weight_scale", DType::f32);
      const Sizes scales = sizes_of(weight_scale);
      check((scales.size() == 1 || scales.size() == 2) && scales[0] >= 1 &&
                (scales.size() == 1 || scales[1] >= 1),
            "weft.", op, ": weight_scale has shape ", scales, ", expected [N] or [N, K / group]");
      p.N = scales[0];
      const int64_t groups = scales.size() == 2 ? scales[1] : 1;
      p.group = p.K / groups;
      check(p.K % groups == 0 && (groups == 1 || (p.group % 8 == 0 && p.group <= kMostGroup)),
            "weft.", op, ": weight_scale has shape ", scales, ", which cuts K = ", p.K,
            " into groups of ", p.group, ", expected multiples of 8 up to ", kMostGroup);
      p.bits = bits;
      check_packed(packed, p.N, p.K, bits);
      p.packed = packed.const_data_ptr();
      p.weight_scale = group_values(weight_scale);
    }

    GroupValues group_values(const Tensor& t) const {
      return {static_cast<const float*>(t.const_data_ptr()), t.stride(0),
              t.dim() == 2 ? t.stride(1) : 0};
    }

    void ending(Linear& p, const OptionalTensor& bias, const OptionalTensor& residual,
                const std::string& activation_name) {
      p.activation = activation(activation_name, /*gated=*/false);
      if (bias) {
        p.bias_dtype = float_dtype(*bias, "bias");
        p.bias = vector(*bias, "bias", p.bias_dtype, {p.N}, "N");
      }
      if (!residual) return;
      p.residual = floats_by_row(*residual, "residual");
      check_shape(*residual, "residual", out_sizes(p), "that of the result");
    }

    Tensor linear(Linear& p) {
      p.columns = p.out_row = p.N;
      Tensor out = fresh(out_sizes(p), p.out_dtype);
      p.out = out.mutable_data_ptr();
      if (p.M > 0) run(p, Backend::linear);
      return out;
    }

   private:
    using Base::contiguous, Base::first_, Base::is_checked;

    void check_zero_points(const void* data, int64_t count, const char* name) const {
      const auto* points = static_cast<const int32_t*>(data);
      for (int64_t i = 0; i < count; ++i)
        check(points[i] >= -128 && points[i] <= 127, "weft.", op, ": ", name, " holds ", points[i],
              ", expected -128 to 127");
    }

    void check_header(const void* data, const PackedHeader& expected) const {
      PackedHeader found;
      std::memcpy(&found, data, sizeof found);
      check(found.magic == expected.magic, "weft.", op, ": packed is no packed weight");
      check(found.version == expected.version, "weft.", op, ": packed has version ", found.version,
            ", expected ", expected.version, ": pack the weight again");
      check(found.N == expected.N && found.K == expected.K && found.bits == expected.bits, "weft.",
            op, ": packed holds a [", found.N, ", ", found.K, "] weight of ", found.bits,
            " bits, expected [", expected.N, ", ", expected.K, "] of ", expected.bits);
    }

    Sizes out_sizes(const Linear& p) const {
      Sizes sizes = sizes_of(first_);
      sizes[sizes.size() - 1] = p.N;
      return sizes;
    }
  };

 public:
  // ---- int8_linear by parts: what a collective multiplies while it goes on

  class Product {
   public:
    // x: [M, K], int8 with a scale for each row or one for all, or floats, which are quantised by
    // row, or by one scale. What it is given must outlive it.
    Product(const char* op, const Tensor& x, const OptionalTensor& x_scale, const Tensor& packed,
            const Tensor& weight_scale, const OptionalTensor& bias, DType dtype)
        : call_(op, x, "x"), x_(x.is_contiguous() ? x : torch::stable::contiguous(x)) {
      const bool given = dtype_of(x) == DType::i8;
      call_.problem(p_, x_, packed, weight_scale, 8, given);
      check(weight_scale.dim() == 1, "weft.", op, ": weight_scale has shape ",
            sizes_of(weight_scale), ", expected [N]");
      check(!given || x_scale, "weft.", op, ": x is int8, so x_scale is needed");
      if (x_scale) {
        p_.x_scale_row = given && x_scale->numel() != 1 ? 1 : 0;
        x_scale_ = static_cast<const float*>(
            call_.numbers(*x_scale, "x_scale", DType::f32, p_.x_scale_row ? p_.M : 1));
      }
      call_.ending(p_, bias, {}, "none");
      p_.out_dtype = dtype;
    }
    int64_t columns() const { return p_.N; }

    // Rows by columns of the result, the first and the number of each; columns by whole panels.
    void operator()(int64_t row, int64_t rows, int64_t column, int64_t columns, void* out,
                    int64_t out_row) {
      Linear p = p_;
      p.M = rows;
      p.x.data = p_.x.row(row);
      if (x_scale_) p.x_scale = x_scale_ + row * p_.x_scale_row;
      p.column = column;
      p.columns = columns;
      p.out = out;
      p.out_row = out_row;
      const int64_t bytes = Backend::workspace_bytes(p);
      p.prepared = row == row_ && rows == rows_;
      if (!workspace_ || workspace_->numel() < bytes) workspace_ = empty({bytes}, DType::u8, x_);
      p.workspace = workspace_->mutable_data_ptr();
      Backend::linear(p);
      row_ = row;
      rows_ = rows;
    }

   private:
    Call call_;
    Tensor x_;
    Linear p_;
    const float* x_scale_ = nullptr;
    OptionalTensor workspace_;
    int64_t row_ = 0, rows_ = -1;  // of the call before
  };
};

}  // namespace weft::int8
