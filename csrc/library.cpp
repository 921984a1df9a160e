// libweft.so: the schemas of all ops, and the CPU kernels behind them.

#include <torch/csrc/stable/library.h>

#include "attention/cpu/attention.h"
#include "comm/cpu/communicator.h"
#include "comm/cpu/linear.h"
#include "cpu/memory.h"
#include "int8/cpu/int8.h"
#include "library_attention.h"
#include "library_comm.h"
#include "library_fused.h"
#include "library_int8.h"
#include "library_norm.h"
#include "norm/cpu/norm.h"

namespace weft {
namespace {

struct Cpu {
  static constexpr const char* name = "cpu";
  static constexpr const char* dtypes = "float32, bfloat16, float16 or float64";
  static bool has(const Tensor& t) { return t.is_cpu(); }
  static bool has(const Tensor& t, const Tensor&) { return t.is_cpu(); }
  static bool takes(DType dtype) { return is_float(dtype); }
  static constexpr bool kHostMemory = true;
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static void prepare(void* data, int64_t bytes) {
    cpu::advise_huge_pages(data, static_cast<size_t>(bytes));
  }
};

struct CpuNorm : Cpu {
  static int64_t workspace_bytes(const norm::Forward& p) { return norm::cpu::workspace_bytes(p); }
  static int64_t workspace_bytes(const norm::Backward& p) { return norm::cpu::workspace_bytes(p); }
  static void forward(const norm::Forward& p) { norm::cpu::forward(p); }
  static void backward(const norm::Backward& p) { norm::cpu::backward(p); }
  static void dropout_mask(const Dropout& dropout, int64_t count, int stream, bool* mask) {
    norm::cpu::dropout_mask(dropout, count, stream, mask);
  }
};

struct CpuAttention : Cpu {
  static constexpr bool reads_indices = true;
  template <class Params>
  static int64_t workspace_bytes(const Params& p) {
    return attention::cpu::workspace_bytes(p);
  }
  static bool takes_fresh(const attention::Forward&) { return false; }
  static void forward(const attention::Forward& p) { attention::cpu::forward(p); }
  static void backward(const attention::Backward& p) { attention::cpu::backward(p); }
  static void append(const attention::Append& p) { attention::cpu::append(p); }
  static void rotary(const attention::Rotary& p) { attention::cpu::rotary(p); }
  static void merge(const attention::Merge& p) { attention::cpu::merge(p); }
};

struct CpuInt8 : Cpu {
  static constexpr bool reads_values = true;
  static constexpr int64_t packed_alignment = 1;
  static constexpr const char* dtypes = "float32, bfloat16 or float16";
  static bool takes(DType dtype) { return is_float(dtype) && dtype != DType::f64; }
  template <class Params>
  static int64_t workspace_bytes(const Params& p) {
    return int8::cpu::workspace_bytes(p);
  }
  static void quantize(const int8::Quantize& p) { int8::cpu::quantize(p); }
  static void dequantize(const int8::Dequantize& p) { int8::cpu::dequantize(p); }
  static void linear(const int8::Linear& p) { int8::cpu::linear(p); }
  static int64_t packed_bytes(int64_t N, int64_t K, int bits) {
    return int8::cpu::packed_bytes(N, K, bits);
  }
  static int8::PackedHeader packed_header(int64_t N, int64_t K, int bits) {
    return int8::cpu::packed_header(N, K, bits);
  }
  static void pack(const int8::Pack& p) { int8::cpu::pack(p); }
  static void unpack(const int8::Unpack& p) { int8::cpu::unpack(p); }
};

struct CpuComm : Cpu {
  using Communicator = comm::cpu::Communicator;
};

struct CpuLinear {
  static bool takes(const comm::Linear& p) { return comm::cpu::takes(p); }
  static int64_t workspace_bytes(const comm::Linear& p) { return comm::cpu::workspace_bytes(p); }
  static void linear(const comm::Linear& p) { comm::cpu::linear(p); }
};

struct CpuFused : CpuNorm {
  static constexpr bool kKeepsProducts = false;
  using Communicator = comm::cpu::Communicator;
  using Int8 = CpuInt8;
  using Linear = CpuLinear;
};

}  // namespace
}  // namespace weft

STABLE_TORCH_LIBRARY(weft, m) {
  weft::norm::define_ops(m);
  weft::attention::define_ops(m);
  weft::int8::define_ops(m);
  weft::comm::define_ops(m);
  weft::fused::define_ops(m);
}

STABLE_TORCH_LIBRARY_IMPL(weft, CPU, m) {
  weft::norm::implement_ops<weft::CpuNorm>(m);
  weft::attention::implement_ops<weft::CpuAttention>(m);
  weft::int8::implement_ops<weft::CpuInt8>(m);
  weft::comm::implement_ops<weft::CpuComm>(m);
  weft::fused::implement_ops<weft::CpuFused>(m);
}
