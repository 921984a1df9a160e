// libweft_cuda.so: the CUDA side of the ops that csrc/library.cpp declares.

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "gpu/device.h"

namespace {

std::tuple<int64_t, int64_t, std::string> cuda_build_info() {
  return {weft::gpu::runtime_version(), weft::gpu::driver_version(), weft::gpu::architectures()};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("cuda_build_info() -> (int runtime_version, int driver_version, str architectures)");
}

STABLE_TORCH_LIBRARY_IMPL(weft, CompositeImplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&cuda_build_info));
}
