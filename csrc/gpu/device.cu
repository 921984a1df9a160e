#include <cuda_runtime_api.h>

#include <cstring>

#include "core/error.h"
#include "gpu/device.h"

namespace weft::gpu {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&value, which, device);
  check(status == cudaSuccess, "CUDA: cudaDeviceGetAttribute: ", cudaGetErrorString(status));
  return value;
}

}  // namespace

Limits limits() {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  check(status == cudaSuccess, "CUDA: cudaGetDevice: ", cudaGetErrorString(status));
  // Code for sm_80 runs on sm_90, too, without what is new there.
  const bool sm90 = attribute(cudaDevAttrComputeCapabilityMajor, device) == 9;
  return {static_cast<uint32_t>(attribute(cudaDevAttrMultiProcessorCount, device)),
          static_cast<uint32_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
          sm90 && std::strstr(architectures(), "sm_90") != nullptr,
          sm90 && std::strstr(architectures(), "sm_90a") != nullptr};
}

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

const char* architectures() { return WEFT_CUDA_ARCHITECTURES; }

}  // namespace weft::gpu
