// The collectives as ops: torch tensors in, checks, allocation, params out. A communicator is named
// by its handle. Written once; a backend supplies
//
//   static constexpr const char* name, *dtypes;  static bool has(const Tensor&), takes(DType);
//   using Guard;                                        Guard(x) makes x's device the current one
//   static void prepare(void* data, int64_t bytes);     a fresh output, before its first touch
//   using Communicator;                                 with find(handle), world() and run(Collective)
#pragma once

#include <memory>
#include <string>

#include "comm/params.h"
#include "torch/call.h"

namespace weft::comm {

constexpr int64_t kLeastGroup = 64, kMostGroup = 32768;

inline void check_group(const char* op, int64_t group) {
  check(group >= kLeastGroup && group <= kMostGroup && (group & (group - 1)) == 0, "weft.", op,
        ": group_size is ", group, ", expected a power of two from ", kLeastGroup, " to ",
        kMostGroup);
}

template <class Backend>
class Ops {
 public:
  static Tensor all_reduce(Tensor x, int64_t communicator, std::string op) {
    Call call(Kind::all_reduce, x, communicator, op);
    Tensor y = call.fresh(sizes_of(x));
    call.run(x.numel(), y);
    return y;
  }

  static void all_reduce_(Tensor x, int64_t communicator, std::string op) {
    Call call(Kind::all_reduce, x, communicator, op);
    call.run(x.numel(), x);
  }

  static Tensor all_reduce_int8(Tensor x, int64_t communicator, std::string op, int64_t group) {
    Call call(Kind::all_reduce_int8, x, communicator, op, group);
    Tensor y = call.fresh(sizes_of(x));
    call.run(x.numel(), y);
    return y;
  }

  static void all_reduce_int8_(Tensor x, int64_t communicator, std::string op, int64_t group) {
    Call call(Kind::all_reduce_int8, x, communicator, op, group);
    call.run(x.numel(), x);
  }

  static Tensor reduce_scatter(Tensor x, int64_t communicator, std::string op) {
    Call call(Kind::reduce_scatter, x, communicator, op);
    const Sizes sizes = call.sizes_of_rows();
    check(sizes[0] % call.world() == 0, "weft.reduce_scatter: x has shape ", sizes,
          ", expected a first dimension that the ", call.world(), " ranks divide");
    Tensor y = call.fresh(with_rows(sizes, sizes[0] / call.world()));
    call.run(y.numel(), y);
    return y;
  }

  static Tensor all_gather(Tensor x, int64_t communicator) {
    Call call(Kind::all_gather, x, communicator, "sum");
    const Sizes sizes = call.sizes_of_rows();
    Tensor y = call.fresh(with_rows(sizes, sizes[0] * call.world()));
    call.run(x.numel(), y);
    return y;
  }

 private:
  static Sizes with_rows(const Sizes& sizes, int64_t rows) {
    Sizes result = {rows};
    for (int d = 1; d < sizes.size(); ++d) result.push_back(sizes[d]);
    return result;
  }

  class Call {
   public:
    Call(Kind kind, const Tensor& x, int64_t handle, const std::string& op, int64_t group = 0)
        : x_(x), guard_(x), communicator_(Backend::Communicator::find(handle)) {
      const char* name = name_of(kind);
      c_.kind = kind;
      c_.dtype = dtype_of(x);
      c_.group = group;
      check(Backend::has(x), "weft.", name, ": x is not on a ", Backend::name, " device");
      const bool any = kind == Kind::all_gather && c_.dtype != DType::other;
      check(any || Backend::takes(c_.dtype), "weft.", name, ": x has dtype ", name_of(c_.dtype),
            ", expected ", kind == Kind::all_gather ? "a number" : Backend::dtypes);
      check(x.is_contiguous(), "weft.", name, ": x is not contiguous");
      check(communicator_ != nullptr, "weft.", name, ": ", handle, " is no communicator");
      check(op == "sum" || op == "avg" || op == "max", "weft.", name, ": op is '", op,
            "', expected sum, avg or max");
      c_.reduction = op == "sum" ? Reduction::sum : op == "avg" ? Reduction::avg : Reduction::max;
      if (kind == Kind::all_reduce_int8) check_group(name, group);
    }

    int64_t world() const { return communicator_->world(); }
    Sizes sizes_of_rows() const {
      check(x_.dim() > 0, "weft.", name_of(c_.kind), ": x has no dimensions, expected rows");
      return sizes_of(x_);
    }
    Tensor fresh(const Sizes& sizes) const { return weft::fresh<Backend>(sizes, c_.dtype, x_); }
    void run(int64_t n, Tensor& y) {
      c_.n = n;
      c_.x = x_.const_data_ptr();
      c_.y = y.mutable_data_ptr();
      communicator_->run(c_);
    }

   private:
    const Tensor& x_;
    typename Backend::Guard guard_;
    std::shared_ptr<typename Backend::Communicator> communicator_;
    Collective c_;
  };
};

}  // namespace weft::comm
