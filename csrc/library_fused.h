// Ops of two families: collectives with a product or a norm inside. Schemas, checks and functions; a
// backend supplies, besides what comm/ops.h asks for,
//
//   static constexpr bool kKeepsProducts;                  run_product wants room for them, as x, and
//                                                          collectives run beside the stream
//   using Int8 = int8::Ops<…>;                              for its Product
//   static int64_t workspace_bytes(const norm::Forward&);  static void forward(const norm::Forward&);
//   Communicator::run(Collective, Progress), run_product(…), run_gather(…); run_beside(Collective,
//   meanwhile) of who keeps products; run_product(…, meanwhile), goes_whole(Collective) and run_behind(…) of who does not
//   static void keep(const Tensor&);                        optional: what calls use until they end
//   using Linear;                                           optional: products of its own, with takes,
//                                                          workspace_bytes, linear(comm::Linear)
//
//   linear_all_reduce      y = Σ_r x_r · W_rᵀ + bias          x [.., K], W [N, K], y [.., N]
//   linear_reduce_scatter  y = the rank's rows of the same    x [M, K], y [M / W, N]
//   all_gather_linear      y = (x_0; x_1; …) · Wᵀ + bias      x [M, K], y [W · M, N], and the rows of x
//   linear_grads           dx = Σ_r dy_r · W_r, or the rank's rows of it, and dW = dyᵀ · x
//   int8_…                 x in int8 with scales, or quantised by row; W packed
//   all_reduce_norm        z = Σ_r x_r + residual, y = norm(z)      as add_norm has it, bit for bit
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>

#include "comm/ops.h"
#include "int8/ops.h"
#include "norm/params.h"

namespace weft::fused {

using comm::Collective;
using comm::Kind;
using comm::Tile;

inline void check_bias(const char* op, const OptionalTensor& bias, DType dtype, int64_t N) {
  if (!bias) return;
  check(dtype_of(*bias) == dtype, "weft.", op, ": bias has dtype ", name_of(dtype_of(*bias)),
        ", expected ", name_of(dtype), " (that of the result)");
  check(sizes_of(*bias) == Sizes({N}), "weft.", op, ": bias has shape ", sizes_of(*bias),
        ", expected [", N, "] (the rows of weight)");
}

// x · Wᵀ + bias, weight [N, K] of any strides: by the backend's product where it has one that takes
// this, else by torch's.
template <class Backend>
class FloatProduct {
 public:
  FloatProduct(const char* op, const Tensor& x, const Tensor& weight, OptionalTensor bias = {})
      : x_(x), weight_(weight), bias_(std::move(bias)), K_(x.size(x.dim() - 1)) {
    check(weight.is_cpu() == x.is_cpu(), "weft.", op, ": weight is not on the device of x");
    check(dtype_of(weight) == dtype_of(x), "weft.", op, ": weight has dtype ",
          name_of(dtype_of(weight)), ", expected ", name_of(dtype_of(x)), " (that of x)");
    check(weight.dim() == 2 && weight.size(1) == K_, "weft.", op, ": weight has shape ",
          sizes_of(weight), ", expected [N, ", K_, "] (the last dimension of x)");
    check_bias(op, bias_, dtype_of(x), columns());
  }
  int64_t columns() const { return weight_.size(0); }
  // t of these rows and columns, by strides or one after the other, the other way round.
  static Tensor transposed(const Tensor& t, int64_t rows, int64_t columns) {
    const bool flat = t.dim() != 2;
    return part(const_cast<void*>(t.const_data_ptr()), {columns, rows},
                {flat ? 1 : t.stride(1), flat ? columns : t.stride(0)}, t);
  }

  // All of it, without a bias. aten::linear, given y, takes some 2 % longer.
  void operator()(Tensor& y) const {
    int64_t rows = 1;
    for (int d = 0; d + 1 < x_.dim(); ++d) rows *= x_.size(d);
    Tensor out = part(y.mutable_data_ptr(), {rows, columns()}, {columns(), 1});
    const Tensor a = x_.dim() == 2 ? x_ : part(x_, 0, {rows, K_}, {K_, 1});
    call("aten::mm", a, transposed(weight_, columns(), K_), out);
  }
  void operator()(const Tile& t, void* to, int64_t stride) {
    if constexpr (requires { typename Backend::Linear; })
      if (multiply_here(t, to, stride)) return;
    const int64_t row = weight_.stride(0), column = weight_.stride(1);
    const Tensor a = part(x_, t.row * K_, {t.rows, K_}, {K_, 1});
    Tensor out = part(to, {t.rows, t.columns}, {stride, 1});
    if (bias_) {
      const Tensor b = part(weight_, t.column * row, {t.columns, K_}, {row, column});
      const OptionalTensor bias =
          part(*bias_, t.column * bias_->stride(0), {t.columns}, {bias_->stride(0)});
      return call("aten::linear", a, b, bias, out);
    }
    call("aten::mm", a, part(weight_, t.column * row, {K_, t.columns}, {column, row}), out);
  }

 private:
  bool multiply_here(const Tile& t, void* to, int64_t stride) {
    comm::Linear p;
    p.dtype = dtype_of(x_);
    p.M = t.rows;
    p.N = t.columns;
    p.K = K_;
    p.x_row = K_;
    p.y_row = stride;
    p.weight_row = weight_.stride(0);
    p.weight_column = weight_.stride(1);
    if ((bias_ && bias_->stride(0) != 1) || !Backend::Linear::takes(p)) return false;
    p.x = at(x_, t.row * K_);
    p.weight = at(weight_, t.column * p.weight_row);
    p.bias = bias_ ? at(*bias_, t.column) : nullptr;
    p.y = to;
    const int64_t bytes = Backend::Linear::workspace_bytes(p);
    if (!workspace_ || workspace_->numel() < bytes) workspace_ = empty({bytes}, DType::u8, x_);
    p.workspace = workspace_->mutable_data_ptr();
    Backend::Linear::linear(p);
    return true;
  }

  static Tensor part(void* data, const Sizes& sizes, const Sizes& strides, const Tensor& like) {
    return torch::stable::from_blob(data, {sizes.data(), size_t(sizes.size())},
                                    {strides.data(), size_t(strides.size())}, like.device(),
                                    like.scalar_type());
  }
  Tensor part(void* data, const Sizes& sizes, const Sizes& strides) const {
    return part(data, sizes, strides, x_);
  }
  Tensor part(const Tensor& t, int64_t offset, const Sizes& sizes, const Sizes& strides) const {
    return part(at(t, offset), sizes, strides, t);
  }
  static void* at(const Tensor& t, int64_t element) {
    char* data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
    return data + element * static_cast<int64_t>(size_of(dtype_of(t)));
  }
  template <class... Arguments>
  static void call(const char* op, const Arguments&... arguments) {
    std::array<StableIValue, sizeof...(arguments)> stack = {
        torch::stable::detail::from(arguments)...};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher(op, "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // lets go of the reference that came back
  }

  const Tensor x_, weight_;
  const OptionalTensor bias_;
  const int64_t K_;
  OptionalTensor workspace_;
};

template <class Backend>
class Ops {
  using FloatProduct = fused::FloatProduct<Backend>;

 public:
  static Tensor linear_all_reduce(Tensor x, Tensor weight, OptionalTensor bias, int64_t handle) {
    Call call("linear_all_reduce", x, handle);
    call.check_floats();
    return call.reduce(Kind::linear_all_reduce, FloatProduct(call.op, x, weight), bias,
                       dtype_of(x));
  }

  static Tensor linear_reduce_scatter(Tensor x, Tensor weight, OptionalTensor bias,
                                      int64_t handle) {
    Call call("linear_reduce_scatter", x, handle);
    call.check_floats();
    return call.reduce(Kind::linear_reduce_scatter, FloatProduct(call.op, x, weight), bias,
                       dtype_of(x));
  }

  static std::tuple<Tensor, Tensor> all_gather_linear(Tensor x, Tensor weight, OptionalTensor bias,
                                                      int64_t handle) {
    Call call("all_gather_linear", x, handle);
    call.check_floats();
    Tensor rows = call.gathered();
    FloatProduct own(call.op, x, weight, bias), all(call.op, rows, weight, bias);
    return {call.gather(rows, own, all, dtype_of(x)), rows};
  }

  // shards: x and dx are the rank's rows. Those of x come while dy · W is computed, which is added up
  // while dW is.
  static std::tuple<Tensor, Tensor> linear_grads(Tensor dy, Tensor x, Tensor weight, int64_t handle,
                                                 bool shards) {
    Call call("linear_grads", dy, handle);
    call.check_floats();
    return call.gradients(x, weight, shards);
  }

  static Tensor int8_linear_all_reduce(Tensor x, OptionalTensor x_scale, Tensor packed,
                                       Tensor weight_scale, OptionalTensor bias, int64_t handle,
                                       ScalarType dtype) {
    Call call("int8_linear_all_reduce", x, handle);
    return call.reduce(Kind::linear_all_reduce,
                       Int8Product(call.op, x, x_scale, packed, weight_scale, {}, dtype), bias,
                       dtype_of(dtype));
  }

  static Tensor int8_linear_reduce_scatter(Tensor x, OptionalTensor x_scale, Tensor packed,
                                           Tensor weight_scale, OptionalTensor bias, int64_t handle,
                                           ScalarType dtype) {
    Call call("int8_linear_reduce_scatter", x, handle);
    return call.reduce(Kind::linear_reduce_scatter,
                       Int8Product(call.op, x, x_scale, packed, weight_scale, {}, dtype), bias,
                       dtype_of(dtype));
  }

  // The rows of x travel as int8, their scales before them.
  static Tensor int8_all_gather_linear(Tensor x, Tensor x_scale, Tensor packed, Tensor weight_scale,
                                       OptionalTensor bias, int64_t handle, ScalarType dtype) {
    Call call("int8_all_gather_linear", x, handle);
    check(dtype_of(x) == DType::i8 && dtype_of(x_scale) == DType::f32 &&
              x_scale.numel() == call.rows() && x_scale.is_contiguous(),
          "weft.", call.op, ": x is ", name_of(dtype_of(x)), " ", sizes_of(x), " and x_scale ",
          name_of(dtype_of(x_scale)), " ", sizes_of(x_scale),
          ", expected int8 and a contiguous float32 for each row");
    Tensor scales = call.room_for_all(x_scale), rows = call.gathered();
    Int8Product own(call.op, x, x_scale, packed, weight_scale, bias, dtype);
    Int8Product all(call.op, rows, scales, packed, weight_scale, bias, dtype);
    call.all_gather(x_scale, scales);  // behind all checks: what is refused reaches no peer
    return call.gather(rows, own, all, dtype_of(dtype));
  }

  static std::tuple<Tensor, Tensor> all_reduce_norm(Tensor x, OptionalTensor residual,
                                                    OptionalTensor weight, OptionalTensor bias,
                                                    int64_t handle, double eps, bool is_rms_norm,
                                                    bool zero_centered, int64_t group_size) {
    Call call("all_reduce_norm", x, handle);
    norm::Forward p = call.norm(weight, bias, eps, is_rms_norm, zero_centered);
    Tensor y = call.fresh(sizes_of(x), dtype_of(x));
    p.y = call.rows_of(y);
    return {y, call.all_reduce_norm(p, residual, group_size)};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> all_reduce_norm_int8(
      Tensor x, OptionalTensor residual, OptionalTensor weight, OptionalTensor bias,
      OptionalTensor scale, int64_t zero_point, bool symmetric, int64_t handle, double eps,
      bool is_rms_norm, bool zero_centered, int64_t group_size) {
    Call call("all_reduce_norm_int8", x, handle);
    norm::Forward p = call.norm(weight, bias, eps, is_rms_norm, zero_centered);
    Sizes per_row = sizes_of(x);
    per_row[per_row.size() - 1] = 1;
    Tensor q = call.fresh(sizes_of(x), DType::i8);
    Tensor scales = scale ? absent(x) : empty(per_row, DType::f32, x);
    Tensor points = scale || symmetric ? absent(x) : empty(per_row, DType::i32, x);
    p.int8.q = call.rows_of(q);
    p.int8.symmetric = symmetric;
    if (scale) {
      check(dtype_of(*scale) == DType::f32 && scale->numel() == 1 && Backend::has(*scale, x),
            "weft.", call.op, ": scale is ", name_of(dtype_of(*scale)), " ", sizes_of(*scale),
            ", expected one float32 on the device of x");
      check(zero_point >= -128 && zero_point <= 127, "weft.", call.op, ": zero_point is ",
            zero_point, ", expected -128 to 127");
      p.int8.scale = static_cast<const float*>(scale->const_data_ptr());
      p.int8.zero_point = static_cast<int32_t>(zero_point);
    } else {
      p.int8.scale_out = static_cast<float*>(scales.mutable_data_ptr());
      if (!symmetric) p.int8.zero_point_out = static_cast<int32_t*>(points.mutable_data_ptr());
    }
    return {q, scales, points, call.all_reduce_norm(p, residual, group_size)};
  }

 private:
  class Int8Product {
   public:
    Int8Product(const char* op, const Tensor& x, const OptionalTensor& x_scale,
                const Tensor& packed, const Tensor& weight_scale, const OptionalTensor& bias,
                ScalarType dtype)
        : product_(op, x, x_scale, packed, weight_scale, bias, dtype_of(dtype)) {
      check(Backend::Int8::takes(dtype_of(dtype)), "weft.", op, ": the result's dtype is ",
            name_of(dtype_of(dtype)), ", expected ", Backend::Int8::dtypes);
      if (bias) check_bias(op, bias, dtype_of(dtype), columns());
    }
    int64_t columns() const { return product_.columns(); }
    void operator()(const Tile& t, void* to, int64_t stride) {
      product_(t.row, t.rows, t.column, t.columns, to, stride);
    }

   private:
    typename int8::Ops<typename Backend::Int8>::Product product_;
  };

  class Call {
   public:
    const char* const op;

    Call(const char* name, const Tensor& x, int64_t handle)
        : op(name), x_(x), guard_(x), communicator_(Backend::Communicator::find(handle)) {
      check(Backend::has(x), "weft.", op, ": x is not on a ", Backend::name, " device");
      check(x.is_contiguous(), "weft.", op, ": x is not contiguous");
      check(communicator_ != nullptr, "weft.", op, ": ", handle, " is no communicator");
      check(x.dim() >= 1, "weft.", op, ": x has no dimensions, expected rows");
      c_.dtype = dtype_of(x);
    }

    void check_floats() const {
      check(Backend::takes(c_.dtype), "weft.", op, ": x has dtype ", name_of(c_.dtype),
            ", expected ", Backend::dtypes);
    }
    int64_t columns() const { return x_.size(x_.dim() - 1); }
    int64_t rows() const {
      int64_t rows = 1;
      for (int d = 0; d + 1 < x_.dim(); ++d) rows *= x_.size(d);
      return rows;
    }
    Tensor fresh(const Sizes& sizes, DType dtype) const {
      return keep(weft::fresh<Backend>(sizes, dtype, x_));
    }

    // ---- products

    template <class Product>
    Tensor reduce(Kind kind, Product product, const OptionalTensor& bias, DType dtype) {
      Sizes whole = sizes_of(x_);
      whole[whole.size() - 1] = product.columns();
      Sizes sizes = whole;
      const bool scatters = kind == Kind::linear_reduce_scatter;
      if (scatters) {
        check(sizes.size() > 1 && sizes[0] % communicator_->world() == 0, "weft.", op,
              ": x has shape ", sizes_of(x_), ", expected a first dimension that the ",
              communicator_->world(), " ranks divide, and columns");
        sizes[0] /= communicator_->world();
      }
      check_bias(op, bias, dtype, product.columns());
      const OptionalTensor addend = bias ? contiguous(*bias) : bias;
      Tensor y = fresh(sizes, dtype), products = y;  // of all rows
      c_.kind = kind;
      c_.dtype = dtype;
      c_.int8 = std::is_same_v<Product, Int8Product>;
      matrix(y.numel(), product.columns());
      c_.y = y.mutable_data_ptr();
      c_.bias = addend ? addend->const_data_ptr() : nullptr;
      if constexpr (Backend::kKeepsProducts) {
        if (scatters) products = fresh(whole, dtype);
        c_.x = products.const_data_ptr();
      } else if (communicator_->goes_whole(c_)) {
        c_.x = c_.y;
        communicator_->run_behind(c_, [&] {
          if (c_.n > 0) product({0, c_.rows(), 0, c_.columns}, c_.y, c_.columns);
        });
        return y;
      }
      communicator_->run_product(
          c_, [&](const Tile& tile, void* to, int64_t stride) { product(tile, to, stride); });
      return y;
    }

    Tensor gathered() const {
      Sizes sizes = sizes_of(x_);
      check(sizes.size() > 1, "weft.", op, ": x has shape ", sizes, ", expected rows and columns");
      sizes[0] *= communicator_->world();
      return fresh(sizes, dtype_of(x_));
    }

    // Of x_ = dy.
    std::tuple<Tensor, Tensor> gradients(const Tensor& x, const Tensor& weight, bool shards) {
      const int64_t M = rows(), N = columns(), W = shards ? communicator_->world() : 1;
      check(weight.dim() == 2 && weight.size(0) == N, "weft.", op, ": weight has shape ",
            sizes_of(weight), ", expected [", N, ", K] (the last dimension of dy)");
      const int64_t K = weight.size(1);
      Sizes sizes = sizes_of(x_);
      sizes[sizes.size() - 1] = K;
      const Sizes all_rows = sizes;
      check(!shards || (sizes.size() > 1 && sizes[0] % W == 0), "weft.", op, ": dy has shape ",
            sizes_of(x_), ", expected a first dimension that the ", W,
            " ranks divide, and columns");
      if (shards) sizes[0] /= W;
      check(Backend::has(x, x_) && dtype_of(x) == c_.dtype && sizes_of(x) == sizes &&
                x.is_contiguous(),
            "weft.", op, ": x is ", name_of(dtype_of(x)), " ", sizes_of(x), ", expected ",
            name_of(c_.dtype), " ", sizes, ", contiguous, on the device of dy");
      Tensor dx = fresh(sizes, c_.dtype), dweight = fresh({N, K}, c_.dtype);
      Tensor all_x = shards ? fresh(all_rows, c_.dtype) : x;
      FloatProduct of_x(op, x_, FloatProduct::transposed(weight, N, K));
      const FloatProduct of_weight(op, FloatProduct::transposed(x_, M, N),
                                   FloatProduct::transposed(all_x, M, K));
      const auto multiply_weight = [&] { of_weight(dweight); };
      if constexpr (Backend::kKeepsProducts) {
        Tensor products = shards ? fresh(all_rows, c_.dtype) : dx;
        const auto multiply = [&] { of_x(products); };
        if (shards)
          communicator_->run_beside(collective(Kind::all_gather, x.numel(), x, all_x), multiply);
        else
          multiply();
        const Kind kind = shards ? Kind::reduce_scatter : Kind::all_reduce;
        communicator_->run_beside(collective(kind, dx.numel(), products, dx), multiply_weight);
      } else {
        if (shards) all_gather(x, all_x);
        c_.kind = shards ? Kind::linear_reduce_scatter : Kind::linear_all_reduce;
        c_.y = dx.mutable_data_ptr();
        matrix(dx.numel(), K);
        if (communicator_->goes_whole(c_)) {
          c_.x = c_.y;
          communicator_->run_behind(c_, [&] { of_x(dx); });
          multiply_weight();
        } else {
          communicator_->run_product(
              c_, [&](const Tile& tile, void* to, int64_t stride) { of_x(tile, to, stride); },
              multiply_weight);
        }
      }
      return {dx, dweight};
    }

    Tensor room_for_all(const Tensor& t) const {
      return keep(empty({communicator_->world() * t.numel()}, dtype_of(t), t));
    }
    void all_gather(const Tensor& t, Tensor& all) const {
      communicator_->run(collective(Kind::all_gather, t.numel(), t, all));
    }

    // y = all rows · Wᵀ, a few columns at a time: the own rows out of x, while the gather is at work.
    template <class Product>
    Tensor gather(const Tensor& all_rows, Product& own, Product& all, DType dtype) {
      const int64_t N = own.columns(), M = rows(), first = communicator_->rank() * M;
      Sizes sizes = sizes_of(all_rows);
      sizes[sizes.size() - 1] = N;
      Tensor y = fresh(sizes, dtype);
      const auto multiply = [&](Product& product, const Tile& tile, int64_t row) {
        if (tile.rows == 0 || tile.columns == 0) return;
        char* const to = static_cast<char*>(y.mutable_data_ptr());
        product(tile, to + (row * N + tile.column) * static_cast<int64_t>(size_of(dtype)), N);
      };
      c_.kind = Kind::all_gather_linear;
      matrix(x_.numel(), columns());
      c_.x = x_.const_data_ptr();
      c_.y = all_rows.mutable_data_ptr();
      int64_t done = 0;  // columns of the own rows
      communicator_->run_gather(c_, [&](int64_t step, int64_t steps) {
        const int64_t due = N * (step + 1) / steps / kColumns * kColumns;
        const int64_t end = step + 1 == steps ? N : due;
        multiply(own, {0, M, done, end - done}, first);
        done = end;
      });
      const int64_t behind = first + M;
      multiply(own, {0, M, done, N - done}, first);
      multiply(all, {0, first, 0, N}, 0);
      multiply(all, {behind, M * communicator_->world() - behind, 0, N}, behind);
      return y;
    }

    // ---- norms

    norm::Forward norm(const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                       bool rms, bool zero_centered) {
      check_floats();
      check(columns() >= 1, "weft.", op, ": x has shape ", sizes_of(x_),
            ", expected a last dimension of at least 1");
      norm::Forward p;
      p.C = columns();
      p.eps = eps;
      p.rms = rms;
      p.zero_centered = zero_centered;
      p.weight = channels(weight, "weight", weight_);
      p.bias = channels(bias, "bias", bias_);
      return p;
    }

    // Rows are normalised as soon as they are added up, before they leave the caches. Returns z.
    Tensor all_reduce_norm(norm::Forward p, const OptionalTensor& residual, int64_t group_size) {
      OptionalTensor addend;
      if (residual) {
        check(Backend::has(*residual, x_) && sizes_of(*residual) == sizes_of(x_) &&
                  Backend::takes(dtype_of(*residual)),
              "weft.", op, ": residual is ", name_of(dtype_of(*residual)), " ", sizes_of(*residual),
              ", expected ", Backend::dtypes, " ", sizes_of(x_), " on the device of x");
        addend = contiguous(*residual);
        p.residual = rows_of(*addend);
      }
      p.z_dtype = addend ? dtype_of(*addend) : c_.dtype;
      Tensor z = fresh(sizes_of(x_), p.z_dtype);
      // Sums become z in place, unless z has another dtype.
      Tensor sums = p.z_dtype == c_.dtype ? z : fresh(sizes_of(x_), c_.dtype);
      p.x = rows_of(sums);
      if (addend) p.residual_out = rows_of(z);

      c_.kind = group_size ? Kind::all_reduce_int8 : Kind::all_reduce;
      c_.group = group_size;
      if (group_size) comm::check_group(op, group_size);
      c_.n = x_.numel();
      c_.x = x_.const_data_ptr();
      c_.y = sums.mutable_data_ptr();
      int64_t done = 0;  // rows
      OptionalTensor workspace;
      communicator_->run(c_, [&](int64_t n) {
        const int64_t end = n / p.C;
        if (end == done) return;
        norm::Forward part = from_row(p, done, end - done);
        const int64_t bytes = Backend::workspace_bytes(part);
        if (bytes && (!workspace || workspace->numel() < bytes))
          workspace = keep(empty({bytes}, DType::u8, x_));
        if (bytes) part.workspace = workspace->mutable_data_ptr();
        Backend::forward(part);
        done = end;
      });
      return z;
    }

    // A contiguous tensor's rows of x's columns.
    Rows rows_of(const Tensor& t) const {
      Rows rows = {const_cast<void*>(t.const_data_ptr()), dtype_of(t), 1, {}, {}};
      rows.size[0] = this->rows();
      rows.stride[0] = columns();
      return rows;
    }

   private:
    // What a backend whose calls go on behind the op needs until they end.
    static Tensor keep(Tensor t) {
      if constexpr (requires { Backend::keep(t); }) Backend::keep(t);
      return t;
    }
    static Tensor contiguous(const Tensor& t) {
      return t.is_contiguous() ? t : keep(torch::stable::contiguous(t));
    }

    static Collective collective(Kind kind, int64_t n, const Tensor& x, Tensor& y) {
      Collective c;
      c.kind = kind;
      c.dtype = dtype_of(x);
      c.n = n;
      c.x = x.const_data_ptr();
      c.y = y.mutable_data_ptr();
      return c;
    }

    static constexpr int64_t kColumns = 256;  // that are worth a product of their own

    void matrix(int64_t n, int64_t width) {
      check(width <= comm::kMostSide && (width == 0 || n / width <= comm::kMostSide), "weft.", op,
            ": the ranks' matrices have ", width == 0 ? 0 : n / width, " rows and ", width,
            " columns, expected at most ", comm::kMostSide, " each");
      c_.n = n;
      c_.columns = width;
    }

    norm::Channels channels(const OptionalTensor& t, const char* name,
                            OptionalTensor& values) const {
      if (!t) return {};
      check(Backend::has(*t, x_) && Backend::takes(dtype_of(*t)) &&
                sizes_of(*t) == Sizes({columns()}),
            "weft.", op, ": ", name, " is ", name_of(dtype_of(*t)), " ", sizes_of(*t),
            ", expected ", Backend::dtypes, " [", columns(),
            "] (the last dimension of x) on the device of x");
      values = contiguous(*t);
      return {const_cast<void*>(values->const_data_ptr()), dtype_of(*t)};
    }

    static norm::Forward from_row(norm::Forward p, int64_t row, int64_t rows) {
      p.N = rows;
      for (Rows* r : {&p.x, &p.residual, &p.y, &p.residual_out, &p.int8.q})
        if (*r) r->data = r->row(row);
      if (p.int8.scale_out) p.int8.scale_out += row;
      if (p.int8.zero_point_out) p.int8.zero_point_out += row;
      return p;
    }

    const Tensor& x_;
    typename Backend::Guard guard_;
    std::shared_ptr<typename Backend::Communicator> communicator_;
    Collective c_;
    OptionalTensor weight_, bias_;  // contiguous
  };
};

inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def("linear_all_reduce(Tensor x, Tensor weight, Tensor? bias, int communicator) -> Tensor");
  m.def("linear_reduce_scatter(Tensor x, Tensor weight, Tensor? bias, int communicator) -> Tensor");
  m.def(
      "all_gather_linear(Tensor x, Tensor weight, Tensor? bias, int communicator) -> (Tensor y, "
      "Tensor gathered)");
  m.def(
      "linear_grads(Tensor dy, Tensor x, Tensor weight, int communicator, bool shards) -> (Tensor "
      "dx, "
      "Tensor dweight)");
#define WEFT_INT8_PRODUCT                                                                    \
  "x_scale, Tensor packed, Tensor weight_scale, Tensor? bias, int communicator, ScalarType " \
  "out_dtype"
  m.def("int8_linear_all_reduce(Tensor x, Tensor? " WEFT_INT8_PRODUCT ") -> Tensor");
  m.def("int8_linear_reduce_scatter(Tensor x, Tensor? " WEFT_INT8_PRODUCT ") -> Tensor");
  m.def("int8_all_gather_linear(Tensor x, Tensor " WEFT_INT8_PRODUCT ") -> Tensor");
#undef WEFT_INT8_PRODUCT
  m.def(
      "all_reduce_norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, int communicator, "
      "float eps, bool is_rms_norm, bool zero_centered_weight, int group_size) -> (Tensor y, "
      "Tensor "
      "residual_out)");
  m.def(
      "all_reduce_norm_int8(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? "
      "scale, int zero_point, bool symmetric, int communicator, float eps, bool is_rms_norm, bool "
      "zero_centered_weight, int group_size) -> (Tensor q, Tensor scale, Tensor zero_point, Tensor "
      "residual_out)");
}

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& m) {
  using Fused = Ops<Backend>;
  m.impl("all_reduce_norm", TORCH_BOX(&Fused::all_reduce_norm));
  m.impl("all_reduce_norm_int8", TORCH_BOX(&Fused::all_reduce_norm_int8));
  m.impl("linear_all_reduce", TORCH_BOX(&Fused::linear_all_reduce));
  m.impl("linear_reduce_scatter", TORCH_BOX(&Fused::linear_reduce_scatter));
  m.impl("all_gather_linear", TORCH_BOX(&Fused::all_gather_linear));
  m.impl("linear_grads", TORCH_BOX(&Fused::linear_grads));
  m.impl("int8_linear_all_reduce", TORCH_BOX(&Fused::int8_linear_all_reduce));
  m.impl("int8_linear_reduce_scatter", TORCH_BOX(&Fused::int8_linear_reduce_scatter));
  m.impl("int8_all_gather_linear", TORCH_BOX(&Fused::int8_all_gather_linear));
}

}  // namespace weft::fused
