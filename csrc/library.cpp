// libweft.so: the schemas of all ops, and the CPU kernels behind them.

#include <torch/csrc/stable/library.h>

#include "cpu/memory.h"
#include "library_norm.h"
#include "norm/cpu/norm.h"

namespace weft {
namespace {

struct CpuNorm {
  static constexpr const char* name = "cpu";
  static constexpr const char* dtypes = "float32, bfloat16, float16 or float64";
  static bool has(const Tensor& t) { return t.is_cpu(); }
  static bool has(const Tensor& t, const Tensor&) { return t.is_cpu(); }
  static bool takes(DType dtype) { return is_float(dtype); }
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static void prepare(void* data, int64_t bytes) {
    cpu::advise_huge_pages(data, static_cast<size_t>(bytes));
  }
  static int64_t workspace_bytes(const norm::Forward& p) { return norm::cpu::workspace_bytes(p); }
  static int64_t workspace_bytes(const norm::Backward& p) { return norm::cpu::workspace_bytes(p); }
  static void forward(const norm::Forward& p) { norm::cpu::forward(p); }
  static void backward(const norm::Backward& p) { norm::cpu::backward(p); }
  static void dropout_mask(const norm::Dropout& dropout, int64_t count, int stream, bool* mask) {
    norm::cpu::dropout_mask(dropout, count, stream, mask);
  }
  static std::pair<int64_t, int64_t> read_rng_state(const Tensor& t) {
    check(t.is_cpu(), "weft: rng_state is not on the CPU");
    const auto* state = static_cast<const int64_t*>(t.const_data_ptr());
    return {state[0], state[1]};
  }
};

}  // namespace
}  // namespace weft

STABLE_TORCH_LIBRARY(weft, m) { weft::norm::define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(weft, CPU, m) { weft::norm::implement_ops<weft::CpuNorm>(m); }
