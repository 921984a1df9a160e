// One call of an op: what it is called with, as its words name it, the checks that all families
// have, and the tensors that must live until it has run. A backend supplies
//
//   static constexpr const char* name, *dtypes;         "cpu"; "float32 or bfloat16", for messages
//   static bool has(const Tensor&);                     is it on a device of this backend's?
//   static bool has(const Tensor& t, const Tensor& x);  is t on the device of x, which has passed?
//   static bool takes(DType);                           a floating dtype that there are kernels for
//   static constexpr bool kHostMemory;                  its kernels' memory is the host's
//   using Guard;                                        Guard(x) makes x's device the current one
//   static void prepare(void* data, int64_t bytes);     a fresh output, before its first touch
//   static int64_t workspace_bytes(const Params&);      of each params that run() is given
#pragma once

#include <cstdlib>
#include <forward_list>
#include <optional>
#include <vector>

#include "torch/tensor.h"

namespace weft {

// t, a fresh output of this dtype, before its first touch.
template <class Backend>
Tensor prepared(Tensor t, DType dtype) {
  const int64_t bytes = t.numel() * static_cast<int64_t>(size_of(dtype));
  if (bytes >= kHugeOutput) Backend::prepare(t.mutable_data_ptr(), bytes);
  return t;
}
// An uninitialised output on the device of `like`.
template <class Backend>
Tensor fresh(const Sizes& sizes, DType dtype, const Tensor& like) {
  return prepared<Backend>(empty(sizes, dtype, like), dtype);
}

// Of the host's memory, at a multiple of 64 bytes, for one call of this thread at a time: what torch's
// allocator would ask the system for, and give back, in every call.
constexpr int64_t kKeptWorkspace = 1 << 20;
inline char* kept_workspace() {
  static thread_local std::vector<char> kept(kKeptWorkspace + 64);
  return kept.data() + (64 - reinterpret_cast<uintptr_t>(kept.data()) % 64);
}

template <class Backend>
class Call {
 public:
  const char* const op;

  // `first` sets the device, and must outlive the call.
  Call(const char* op_name, const Tensor& first, const char* name)
      : op(op_name), first_(first), first_name_(name) {
    check(Backend::has(first), "weft.", op, ": ", name, " is not on a ", Backend::name, " device");
    guard_.emplace(first);
  }

  // ---- one tensor

  void check_device(const Tensor& t, const char* name) const {
    check(Backend::has(t, first_), "weft.", op, ": ", name, " is not on the device of ",
          first_name_);
  }

  DType float_dtype(const Tensor& t, const char* name) const {
    check_device(t, name);
    const DType type = dtype_of(t);
    check(Backend::takes(type), "weft.", op, ": ", name, " has dtype ", name_of(type),
          ", expected ", Backend::dtypes);
    return type;
  }

  void check_dtype(const Tensor& t, const char* name, DType expected) const {
    check_device(t, name);
    check(dtype_of(t) == expected, "weft.", op, ": ", name, " has dtype ", name_of(dtype_of(t)),
          ", expected ", name_of(expected));
  }

  void check_shape(const Tensor& t, const char* name, const Sizes& expected,
                   const char* what) const {
    check(sizes_of(t) == expected, "weft.", op, ": ", name, " has shape ", sizes_of(t),
          ", expected ", expected, " (", what, ")");
  }

  void check_no_repeats(const Tensor& t, const char* name, const char* consequence) const {
    for (int64_t d = 0; d < t.dim(); ++d)
      check(t.stride(d) != 0 || t.size(d) <= 1, "weft.", op, ": ", name,
            " repeats elements in memory, ", consequence);
  }

  // t, or a copy that lives as long as the call.
  const Tensor& contiguous(const Tensor& t) {
    if (t.is_contiguous()) return t;
    keep_.push_front(torch::stable::contiguous(t));
    return keep_.front();
  }

  // ---- outputs

  Tensor fresh(const Sizes& sizes, DType dtype) const {
    return weft::fresh<Backend>(sizes, dtype, first_);
  }

  template <class Params>
  void run(Params& p, void (*kernel)(const Params&)) const {
    const int64_t bytes = Backend::workspace_bytes(p);
    if constexpr (Backend::kHostMemory) {
      alignas(64) char small[kSmallWorkspace];
      if (bytes <= kKeptWorkspace) {
        p.workspace = bytes <= kSmallWorkspace ? small : kept_workspace();
        return kernel(p);
      }
    }
    OptionalTensor workspace;
    if (bytes) {
      workspace = empty({bytes}, DType::u8, first_);
      p.workspace = workspace->mutable_data_ptr();
    }
    kernel(p);
  }

 protected:
  // What lies in a GPU's memory is copied to the host and looked into.
  static bool is_checked() {
    const char* value = std::getenv("WEFT_CHECK");
    return value && *value && *value != '0';
  }

  const Tensor& first_;
  const char* const first_name_;

 private:
  static constexpr int64_t kSmallWorkspace = 16 << 10;

  std::optional<typename Backend::Guard> guard_;
  std::forward_list<Tensor> keep_;
};

}  // namespace weft
