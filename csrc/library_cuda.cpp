// libweft_cuda.so: the CUDA side of the ops that csrc/library.cpp declares.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "attention/cuda/attention.h"
#include "gpu/device.h"
#include "library_attention.h"
#include "library_norm.h"
#include "norm/cuda/norm.h"

namespace weft {
namespace {

struct Cuda {
  static constexpr const char* name = "CUDA";
  static constexpr const char* dtypes = "float32, bfloat16 or float16 (on CUDA)";
  static bool has(const Tensor& t) { return t.is_cuda(); }
  static bool has(const Tensor& t, const Tensor& x) {
    return t.is_cuda() && t.get_device_index() == x.get_device_index();
  }
  static bool takes(DType dtype) { return is_float(dtype) && dtype != DType::f64; }
  struct Guard {
    torch::stable::accelerator::DeviceGuard guard;
    explicit Guard(const Tensor& x) : guard(x.get_device_index()) {}
  };
  static void prepare(void*, int64_t) {}

  // The current device, and torch's current stream on it.
  template <class Device>
  static Device device() {
    void* stream = nullptr;
    check(aoti_torch_get_current_cuda_stream(-1, &stream) == 0, "weft: no current CUDA stream");
    return {gpu::limits(), stream};
  }
};

struct CudaNorm : Cuda {
  static norm::cuda::Device device() { return Cuda::device<norm::cuda::Device>(); }
  static int64_t workspace_bytes(const norm::Forward&) { return 0; }
  static int64_t workspace_bytes(const norm::Backward& p) {
    return norm::cuda::workspace_bytes(p, gpu::limits());
  }
  static void forward(const norm::Forward& p) { norm::cuda::forward(p, device()); }
  static void backward(const norm::Backward& p) { norm::cuda::backward(p, device()); }
  static void dropout_mask(const Dropout& dropout, int64_t count, int stream, bool* mask) {
    norm::cuda::dropout_mask(dropout, count, stream, mask, device());
  }
};

struct CudaAttention : Cuda {
  static constexpr bool reads_indices = false;
  static inline bool prefer_sm90 = false;
  static attention::cuda::Device device() {
    auto device = Cuda::device<attention::cuda::Device>();
    device.prefer_sm90 = prefer_sm90;
    return device;
  }
  static int64_t workspace_bytes(const attention::Forward& p) {
    return attention::cuda::workspace_bytes(p, gpu::limits());
  }
  static int64_t workspace_bytes(const attention::Backward& p) {
    return attention::cuda::workspace_bytes(p, gpu::limits());
  }
  static void forward(const attention::Forward& p) { attention::cuda::forward(p, device()); }
  static void backward(const attention::Backward& p) { attention::cuda::backward(p, device()); }
  static void append(const attention::Append& p) { attention::cuda::append(p, device()); }
  static void rotary(const attention::Rotary& p) { attention::cuda::rotary(p, device()); }
  static void merge(const attention::Merge& p) { attention::cuda::merge(p, device()); }
};

std::tuple<int64_t, int64_t, std::string> cuda_build_info() {
  return {gpu::runtime_version(), gpu::driver_version(), gpu::architectures()};
}

// For tests: sm_90's attention kernels take all calls that they can, worth it or not.
void prefer_sm90(bool on) { CudaAttention::prefer_sm90 = on; }

}  // namespace
}  // namespace weft

STABLE_TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("cuda_build_info() -> (int runtime_version, int driver_version, str architectures)");
  m.def("_prefer_sm90(bool on) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(weft, CompositeImplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&weft::cuda_build_info));
  m.impl("_prefer_sm90", TORCH_BOX(&weft::prefer_sm90));
}

STABLE_TORCH_LIBRARY_IMPL(weft, CUDA, m) {
  weft::norm::implement_ops<weft::CudaNorm>(m);
  weft::attention::implement_ops<weft::CudaAttention>(m);
}
