// libweft_cuda.so: the CUDA side of the ops that csrc/library.cpp declares.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "attention/cuda/attention.h"
#include "comm/cuda/node.h"
#include "gpu/device.h"
#include "int8/cuda/int8.h"
#include "library_attention.h"
#include "library_comm.h"
#include "library_fused.h"
#include "library_int8.h"
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
  static constexpr bool kHostMemory = false;
  struct Guard {
    torch::stable::accelerator::DeviceGuard guard;
    explicit Guard(const Tensor& x) : guard(x.get_device_index()) {}
  };
  static void prepare(void*, int64_t) {}

  // Of the current device, or what an A100 has of them.
  static inline bool as_sm80 = false;
  static gpu::Limits limits() {
    gpu::Limits limits = gpu::limits();
    if (as_sm80) {
      limits.shared_bytes = std::min<uint32_t>(limits.shared_bytes, 163 << 10);
      limits.clusters = limits.wgmma = false;
    }
    return limits;
  }

  // torch's, on the current device.
  static gpu::Stream stream() {
    void* stream = nullptr;
    check(aoti_torch_get_current_cuda_stream(-1, &stream) == 0, "weft: no current CUDA stream");
    return stream;
  }
  template <class Device>
  static Device device() {
    return {limits(), stream()};
  }
};

struct CudaNorm : Cuda {
  static norm::cuda::Device device() { return Cuda::device<norm::cuda::Device>(); }
  static int64_t workspace_bytes(const norm::Forward&) { return 0; }
  static int64_t workspace_bytes(const norm::Backward& p) {
    return norm::cuda::workspace_bytes(p, limits());
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
    return attention::cuda::workspace_bytes(p, device());
  }
  static int64_t workspace_bytes(const attention::Backward& p) {
    return attention::cuda::workspace_bytes(p, limits());
  }
  static bool takes_fresh(const attention::Forward& p) {
    return attention::cuda::takes_fresh(p, device());
  }
  static void forward(const attention::Forward& p) { attention::cuda::forward(p, device()); }
  static void backward(const attention::Backward& p) { attention::cuda::backward(p, device()); }
  static void append(const attention::Append& p) { attention::cuda::append(p, device()); }
  static void rotary(const attention::Rotary& p) { attention::cuda::rotary(p, device()); }
  static void merge(const attention::Merge& p) { attention::cuda::merge(p, device()); }
};

struct CudaInt8 : Cuda {
  static constexpr bool reads_values = false;
  static constexpr int64_t packed_alignment = 16;
  static int8::cuda::Device device() { return Cuda::device<int8::cuda::Device>(); }
  template <class Params>
  static int64_t workspace_bytes(const Params& p) {
    return int8::cuda::workspace_bytes(p, limits());
  }
  static void quantize(const int8::Quantize& p) { int8::cuda::quantize(p, device()); }
  static void dequantize(const int8::Dequantize& p) { int8::cuda::dequantize(p, device()); }
  static void linear(const int8::Linear& p) { int8::cuda::linear(p, device()); }
  static int64_t packed_bytes(int64_t N, int64_t K, int bits) {
    return int8::cuda::packed_bytes(N, K, bits);
  }
  static int8::PackedHeader packed_header(int64_t N, int64_t K, int bits) {
    return int8::cuda::packed_header(N, K, bits);
  }
  static void pack(const int8::Pack& p) { int8::cuda::pack(p, device()); }
  static void unpack(const int8::Unpack& p) { int8::cuda::unpack(p, device()); }
};

struct CudaComm : Cuda {
  using Communicator = comm::cuda::Communicator;
};

struct CudaFused : CudaNorm {
  static constexpr bool kKeepsProducts = true;
  using Communicator = comm::cuda::Communicator;
  using Int8 = CudaInt8;
};

// ---- communicators' GPUs, as python/weft/distributed/_cuda.py makes them: by the communicator's
// handle, on the current device.
using comm::cuda::Node;

comm::cuda::Options node_options(int64_t world, double timeout, int64_t blocks,
                                 bool multicast = false) {
  comm::cuda::Options options;
  options.timeout = timeout;
  options.topology.world = static_cast<int>(world);
  options.topology.multicast = multicast;
  options.budget.blocks = static_cast<uint32_t>(blocks);
  return options;
}

std::shared_ptr<Node> node(int64_t communicator) {
  const auto found = std::dynamic_pointer_cast<Node>(comm::cuda::Communicator::find(communicator));
  check(found != nullptr, "weft: ", communicator, " is no communicator with GPUs");
  return found;
}

std::string comm_open(int64_t communicator, int64_t rank, int64_t world, double timeout,
                      int64_t blocks, bool multicast) {
  const auto made = std::make_shared<Node>(node_options(world, timeout, blocks, multicast),
                                           static_cast<int>(rank), &Cuda::stream);
  comm::cuda::Communicator::enter(communicator, made);
  return made->address();
}

std::vector<int64_t> comm_descriptors(int64_t communicator) {
  return node(communicator)->descriptors();
}

bool comm_connect(int64_t communicator, std::string addresses, std::vector<int64_t> descriptors) {
  return node(communicator)->connect(addresses, descriptors) == gpu::Link::nvlink;
}

void comm_bind(int64_t communicator) { node(communicator)->bind(); }

void comm_agree(int64_t communicator, bool nvlink, std::vector<int64_t> sizes,
                std::string algorithms) {
  node(communicator)->agree(nvlink, comm::cuda::table_of(sizes, algorithms));
}

// Ranks of this process, on one device: for tests.
void comm_local(std::vector<int64_t> communicators, double timeout, int64_t blocks) {
  std::vector<std::shared_ptr<Node>> ranks;
  const auto world = static_cast<int64_t>(communicators.size());
  for (int r = 0; r < world; ++r) {
    ranks.push_back(std::make_shared<Node>(node_options(world, timeout, blocks), r, &Cuda::stream));
    comm::cuda::Communicator::enter(communicators[static_cast<size_t>(r)], ranks.back());
  }
  Node::connect(ranks);
}

std::string comm_failure(int64_t communicator) { return node(communicator)->failure(); }
void comm_close(int64_t communicator) { node(communicator)->close(); }
void comm_leave(int64_t communicator) { comm::cuda::Communicator::leave(communicator); }

std::tuple<int64_t, int64_t, std::string> cuda_build_info() {
  return {gpu::runtime_version(), gpu::driver_version(), gpu::architectures()};
}

// For tests: sm_90's attention kernels take all calls that they can, worth it or not.
void prefer_sm90(bool on) { CudaAttention::prefer_sm90 = on; }
// … and: no kernel of sm_90's own takes any.
void as_sm80(bool on) { Cuda::as_sm80 = on; }

}  // namespace
}  // namespace weft

STABLE_TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("cuda_build_info() -> (int runtime_version, int driver_version, str architectures)");
  m.def("_prefer_sm90(bool on) -> ()");
  m.def("_as_sm80(bool on) -> ()");
  m.def(
      "_comm_open(int communicator, int rank, int world, float timeout, int blocks, "
      "bool multicast) -> str address");
  m.def("_comm_descriptors(int communicator) -> int[]");
  m.def("_comm_connect(int communicator, str addresses, int[] descriptors) -> bool nvlink");
  m.def("_comm_bind(int communicator) -> ()");
  m.def("_comm_agree(int communicator, bool nvlink, int[] sizes, str algorithms) -> ()");
  m.def("_comm_local(int[] communicators, float timeout, int blocks) -> ()");
  m.def("_comm_failure(int communicator) -> str");
  m.def("_comm_close(int communicator) -> ()");
  m.def("_comm_leave(int communicator) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(weft, CompositeImplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&weft::cuda_build_info));
  m.impl("_prefer_sm90", TORCH_BOX(&weft::prefer_sm90));
  m.impl("_as_sm80", TORCH_BOX(&weft::as_sm80));
  m.impl("_comm_open", TORCH_BOX(&weft::comm_open));
  m.impl("_comm_descriptors", TORCH_BOX(&weft::comm_descriptors));
  m.impl("_comm_connect", TORCH_BOX(&weft::comm_connect));
  m.impl("_comm_bind", TORCH_BOX(&weft::comm_bind));
  m.impl("_comm_agree", TORCH_BOX(&weft::comm_agree));
  m.impl("_comm_local", TORCH_BOX(&weft::comm_local));
  m.impl("_comm_failure", TORCH_BOX(&weft::comm_failure));
  m.impl("_comm_close", TORCH_BOX(&weft::comm_close));
  m.impl("_comm_leave", TORCH_BOX(&weft::comm_leave));
}

STABLE_TORCH_LIBRARY_IMPL(weft, CUDA, m) {
  weft::norm::implement_ops<weft::CudaNorm>(m);
  weft::attention::implement_ops<weft::CudaAttention>(m);
  weft::comm::implement_ops<weft::CudaComm>(m);
  weft::fused::implement_ops<weft::CudaFused>(m);
  weft::int8::implement_ops<weft::CudaInt8>(m);
}
